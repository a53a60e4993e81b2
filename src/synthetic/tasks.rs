//! Prompts, and the items that answer them: `datasets/clinical/tasks.json`.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use serde::Deserialize;

use super::{content::ItemKind, layout::PageContent, vocabulary::Split};
use crate::prompts::EXTRACTION_PROMPT;
use crate::random::SeededRng;
use crate::test_documents::DocumentSet;

const TASKS: &str = include_str!("../../datasets/clinical/tasks.json");
/// Id of the task that asks for the whole page.
pub const TRANSCRIBE: &str = "transcribe";
/// Maximum number of parts named in a prompt for the whole page; the minimum is three or four.
const MAX_PARTS: usize = 7;

/// A question about a page, with the exact answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Id of the task.
    pub task: &'static str,
    /// The prompt.
    pub prompt: String,
    /// The expected answer.
    pub answer: String,
    /// Items of the answer, empty if the page has none of the kind; the lines of a transcription.
    pub items: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tasks {
    /// Questions per page.
    questions_to_train: usize,
    questions_to_measure: usize,
    whole_page_chance: f64,
    usual_prompt_chance: f64,
    nothing: String,
    tasks: Vec<Task>,
    whole_document: WholeDocument,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Task {
    id: String,
    weight: u32,
    /// Weight in training, for tasks that take longer to learn.
    #[serde(default)]
    weight_to_train: Option<u32>,
    kinds: Kinds,
    /// The first one is the canonical prompt, the only one in validation and test.
    prompts: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Kinds {
    Items(Vec<ItemKind>),
    /// "whole_page"
    All(#[allow(dead_code, reason = "the word is for readers of the file")] String),
}

/// Parts of composed prompts that ask for the whole page by naming much of it, or the document itself.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WholeDocument {
    verbs: Vec<String>,
    all: Vec<String>,
    parts: Vec<String>,
    whole: Vec<String>,
    each: Vec<String>,
    things: Vec<String>,
    qualities: Vec<String>,
    /// By kind of document.
    documents: HashMap<String, Vec<String>>,
}

static DATA: LazyLock<Tasks> =
    LazyLock::new(|| serde_json::from_str(TASKS).expect("the shipped tasks are parsed by the tests"));

/// Prompts of the test and evaluation documents: not trained on verbatim, so that the metrics generalize to other prompts.
static HELD_OUT: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let sets = [DocumentSet::test(), DocumentSet::evaluation()];
    let documents = sets.into_iter().flat_map(|set| set.documents);
    documents
        .map(|document| document.prompt)
        .chain([EXTRACTION_PROMPT.to_owned()])
        .collect()
});

/// The expected answer if a page has no item of the requested kind.
pub fn empty_answer() -> &'static str {
    &DATA.nothing
}

/// Kinds of item that answer a task; `None` for the whole page and for unknown ids.
pub fn task_kinds(id: &str) -> Option<&'static [ItemKind]> {
    match &DATA.tasks.iter().find(|task| task.id == id)?.kinds {
        Kinds::Items(kinds) => Some(kinds),
        Kinds::All(_) => None,
    }
}

/// The transcription prompt of pages without tasks, such as reports: the one that the embedded model was trained with.
pub fn whole_page_prompt() -> &'static str {
    DATA.tasks
        .iter()
        .find(|task| task.id == TRANSCRIBE)
        .and_then(|task| task.prompts.get(1))
        .map_or(EXTRACTION_PROMPT, String::as_str)
}

/// Questions about one page, one per task.
pub(super) fn questions(
    document: &str,
    content: &PageContent,
    split: Split,
    rng: &mut SeededRng,
) -> Vec<Question> {
    let mut asked: Vec<Question> = Vec::new();
    if rng.chance(DATA.whole_page_chance) {
        asked.push(Question {
            task: TRANSCRIBE,
            prompt: sample_whole_page_prompt(document, split, rng),
            answer: content.lines.join("\n"),
            items: content.lines.clone(),
        });
    }
    let wanted = match split {
        Split::Train => DATA.questions_to_train,
        _ => DATA.questions_to_measure,
    };
    while asked.len() < wanted {
        let weight = |task: &Task| match split {
            Split::Train => task.weight_to_train.unwrap_or(task.weight),
            _ => task.weight,
        };
        let Some(task) = rng.weighted(&DATA.tasks, weight) else {
            break;
        };
        let items = matching(task, content);
        // Keep a quarter of the questions without an answer, enough to learn to say so.
        let skipped = items.is_empty() && rng.chance(0.75);
        if skipped || asked.iter().any(|question| question.task == task.id) {
            continue;
        }
        let canonical = split != Split::Train || rng.chance(DATA.usual_prompt_chance);
        let prompt = if canonical {
            task.prompts.first()
        } else {
            Some(rng.pick(&task.prompts))
        };
        asked.push(Question {
            task: &task.id,
            prompt: prompt.cloned().unwrap_or_default(),
            answer: if items.is_empty() {
                DATA.nothing.clone()
            } else {
                items.join("\n")
            },
            items,
        });
    }
    asked
}

fn matching(task: &Task, content: &PageContent) -> Vec<String> {
    let Kinds::Items(kinds) = &task.kinds else {
        return content.lines.clone();
    };
    let items = content.items.iter().filter(|item| kinds.contains(&item.kind));
    items.map(|item| item.text.clone()).collect()
}

/// A plain transcription prompt, or one composed of the document's name or many of its parts.
fn sample_whole_page_prompt(document: &str, split: Split, rng: &mut SeededRng) -> String {
    let plain = DATA
        .tasks
        .iter()
        .find(|task| task.id == TRANSCRIBE)
        .map(|task| task.prompts.as_slice());
    let plain = plain.unwrap_or_default();
    // Validation and test use the first two only.
    let plain = if split == Split::Train {
        plain
    } else {
        &plain[..plain.len().min(2)]
    };
    if !plain.is_empty() && rng.chance(0.5) {
        return rng.pick(plain).clone();
    }
    loop {
        let prompt = compose(document, rng);
        if !HELD_OUT.contains(&prompt) {
            return prompt;
        }
    }
}

fn compose(document: &str, rng: &mut SeededRng) -> String {
    let data = &DATA.whole_document;
    let each = rng.chance(0.35);
    let by_name = rng.chance(0.8);
    let name = match data.documents.get(document).filter(|_| by_name) {
        Some(names) => rng.pick(names).as_str(),
        None => "page",
    };
    // "This page" with few parts asks for those parts only; four or more mean the whole page.
    let min_parts = if by_name { 3 } else { 4 };
    let (templates, parts, max_parts) = match each {
        true => (&data.each, &data.qualities, 5),
        false => (&data.whole, &data.parts, MAX_PARTS),
    };
    let count = rng.between(min_parts, max_parts);
    let parts = rng.several(parts, count);
    let parts: Vec<&str> = parts.into_iter().map(String::as_str).collect();
    let listed = match parts.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => parts.concat(),
    };
    let template = rng.pick(templates);
    [
        ("{verb}", rng.pick(&data.verbs).as_str()),
        ("{all}", rng.pick(&data.all).as_str()),
        ("{thing}", rng.pick(&data.things).as_str()),
        ("{parts}", &listed),
        ("{document}", name),
    ]
    .into_iter()
    .fold(template.clone(), |text, (place, words)| {
        text.replace(place, words)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompts::PROMPTS;

    #[test]
    fn each_of_the_ten_prompts_is_the_canonical_prompt_of_one_task() {
        for prompt in PROMPTS {
            let tasks: Vec<&Task> = DATA
                .tasks
                .iter()
                .filter(|task| task.prompts.iter().any(|own| own == prompt))
                .collect();
            assert_eq!(tasks.len(), 1, "{prompt}");
            assert_eq!(tasks[0].prompts[0], prompt);
        }
        let ids: HashSet<&str> = DATA.tasks.iter().map(|task| task.id.as_str()).collect();
        assert_eq!(ids.len(), DATA.tasks.len());
        let prompts: Vec<&String> = DATA.tasks.iter().flat_map(|task| &task.prompts).collect();
        assert_eq!(
            prompts.iter().collect::<HashSet<_>>().len(),
            prompts.len(),
            "a prompt means one thing"
        );
    }

    #[test]
    fn whole_page_prompts_are_complete_diverse_and_not_held_out() {
        let mut rng = SeededRng::new(1, "prompts", 0, 0);
        let mut seen = HashSet::new();
        for document in crate::synthetic::vocabulary::kinds() {
            for _ in 0..200 {
                let prompt = sample_whole_page_prompt(&document.id, Split::Train, &mut rng);
                assert!(
                    !prompt.contains(['{', '}']) && !HELD_OUT.contains(&prompt),
                    "{prompt}"
                );
                seen.insert(prompt);
            }
            assert!(
                DATA.whole_document.documents.contains_key(&document.id),
                "{}",
                document.id
            );
        }
        assert!(seen.len() > 800, "{}", seen.len());
        assert_eq!(
            whole_page_prompt(),
            "Extract all medical terms, diagnoses, and clinical findings from this image."
        );
    }
}
