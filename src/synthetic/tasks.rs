//! Prompts, and which items of a page answer them: `datasets/clinical/tasks.json`.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use serde::Deserialize;

use super::{content::ItemKind, dice::Dice, layout::Written, vocabulary::Split};
use crate::documents::DocumentSet;
use crate::prompts::EXTRACTION_PROMPT;

const TASKS: &str = include_str!("../../datasets/clinical/tasks.json");
/// The task that asks for the whole page.
pub const TRANSCRIBE: &str = "transcribe";
/// A page may have at most this many parts named in a prompt for the whole of it, and at least three or four.
const MOST_PARTS: usize = 7;

/// What is asked about a page, and the exact answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Id of the task.
    pub task: &'static str,
    /// What is asked.
    pub prompt: String,
    /// What is to be answered.
    pub answer: String,
    /// The answer's items, none where there is nothing of the kind; a transcription's are its lines.
    pub items: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tasks {
    /// Of each page.
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
    /// Where training asks for it more often than validation and test do, since it takes longer to learn.
    #[serde(default)]
    weight_to_train: Option<u32>,
    kinds: Kinds,
    /// The usual one first: validation and test ask with it alone.
    prompts: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Kinds {
    Items(Vec<ItemKind>),
    /// "whole_page"
    All(#[allow(dead_code, reason = "the word is for readers of the file")] String),
}

/// Parts of prompts that ask for everything by naming much of it, or the document itself.
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
    LazyLock::new(|| serde_json::from_str(TASKS).expect("the shipped tasks are read by the tests"));

/// Prompts that the project is measured with: never trained on as they are, so that the figures hold for others, too.
static HELD_OUT: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let sets = [DocumentSet::test(), DocumentSet::evaluation()];
    let documents = sets.into_iter().flat_map(|set| set.documents);
    documents
        .map(|document| document.prompt)
        .chain([EXTRACTION_PROMPT.to_owned()])
        .collect()
});

/// The answer where a page has nothing of the kind that is asked for.
pub fn nothing() -> &'static str {
    &DATA.nothing
}

/// The kinds of item that answer a task; `None` where that is the whole page, or there is no such task.
pub fn task_kinds(id: &str) -> Option<&'static [ItemKind]> {
    match &DATA.tasks.iter().find(|task| task.id == id)?.kinds {
        Kinds::Items(kinds) => Some(kinds),
        Kinds::All(_) => None,
    }
}

/// The prompt that pages without a task of their own are asked with for the whole of them: the embedded model's own.
pub fn whole_page_prompt() -> &'static str {
    DATA.tasks
        .iter()
        .find(|task| task.id == TRANSCRIBE)
        .and_then(|task| task.prompts.get(1))
        .map_or(EXTRACTION_PROMPT, String::as_str)
}

/// Different questions about one page.
pub(super) fn questions(document: &str, written: &Written, split: Split, dice: &mut Dice) -> Vec<Question> {
    let mut asked: Vec<Question> = Vec::new();
    if dice.chance(DATA.whole_page_chance) {
        asked.push(Question {
            task: TRANSCRIBE,
            prompt: whole_prompt(document, split, dice),
            answer: written.lines.join("\n"),
            items: written.lines.clone(),
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
        let Some(task) = dice.weighted(&DATA.tasks, weight) else {
            break;
        };
        let items = matching(task, written);
        // Most questions have an answer; as many others as it takes to learn to say so.
        let skipped = items.is_empty() && dice.chance(0.75);
        if skipped || asked.iter().any(|question| question.task == task.id) {
            continue;
        }
        let usual = split != Split::Train || dice.chance(DATA.usual_prompt_chance);
        let prompt = if usual {
            task.prompts.first()
        } else {
            Some(dice.pick(&task.prompts))
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

fn matching(task: &Task, written: &Written) -> Vec<String> {
    let Kinds::Items(kinds) = &task.kinds else {
        return written.lines.clone();
    };
    let items = written.items.iter().filter(|item| kinds.contains(&item.kind));
    items.map(|item| item.text.clone()).collect()
}

/// One of the few plain prompts, or one that names the document or many of its parts.
fn whole_prompt(document: &str, split: Split, dice: &mut Dice) -> String {
    let plain = DATA
        .tasks
        .iter()
        .find(|task| task.id == TRANSCRIBE)
        .map(|task| task.prompts.as_slice());
    let plain = plain.unwrap_or_default();
    // Measured with the two that all pages are read with; trained with all.
    let plain = if split == Split::Train {
        plain
    } else {
        &plain[..plain.len().min(2)]
    };
    if !plain.is_empty() && dice.chance(0.5) {
        return dice.pick(plain).clone();
    }
    loop {
        let prompt = composed(document, dice);
        if !HELD_OUT.contains(&prompt) {
            return prompt;
        }
    }
}

fn composed(document: &str, dice: &mut Dice) -> String {
    let data = &DATA.whole_document;
    let each = dice.chance(0.35);
    let by_name = dice.chance(0.8);
    let name = match data.documents.get(document).filter(|_| by_name) {
        Some(names) => dice.pick(names).as_str(),
        None => "page",
    };
    // "This page" could also be asked for a part of it: only many parts make it the whole.
    let least = if by_name { 3 } else { 4 };
    let (templates, parts, most) = match each {
        true => (&data.each, &data.qualities, 5),
        false => (&data.whole, &data.parts, MOST_PARTS),
    };
    let count = dice.between(least, most);
    let parts = dice.several(parts, count);
    let parts: Vec<&str> = parts.into_iter().map(String::as_str).collect();
    let listed = match parts.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => parts.concat(),
    };
    let template = dice.pick(templates);
    [
        ("{verb}", dice.pick(&data.verbs).as_str()),
        ("{all}", dice.pick(&data.all).as_str()),
        ("{thing}", dice.pick(&data.things).as_str()),
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
    fn each_of_the_ten_prompts_is_one_tasks_usual_one() {
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
    fn prompts_for_the_whole_document_are_complete_and_many_and_none_is_held_out() {
        let mut dice = Dice::new(1, "prompts", 0, 0);
        let mut seen = HashSet::new();
        for document in crate::synthetic::vocabulary::kinds() {
            for _ in 0..200 {
                let prompt = whole_prompt(&document.id, Split::Train, &mut dice);
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
