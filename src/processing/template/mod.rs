//! Evaluates chat templates of model folders within a budget.
//!
//! A template is an untrusted program, so no engine for trusted templates runs it. This module evaluates the subset of Jinja that
//! chat templates use and charges every step, byte and list item to one budget. Other features (macros, includes, filters that
//! multiply their input) are rejected by name when the template is parsed. minijinja only parses.

mod evaluate;
mod functions;
mod tree;
mod value;

use std::collections::BTreeMap;

use minijinja::machinery::{Token, ast, parse, tokenize};
use minijinja::syntax::SyntaxConfig;

pub(super) use self::value::Value;

/// Maximum bytes of a template; the longest published ones have about 20,000.
const MAX_SOURCE: usize = 64 * 1024;
/// Maximum tokens in a tag, which bounds the depth of expressions.
const MAX_TAG_TOKENS: usize = 256;
/// Budget of one rendering: a step costs 1, eight bytes of text 1, a list item 4. All of it is about 0.1 s and 16 MiB.
const BUDGET: u64 = 2_000_000;
/// Maximum bytes of output, without message texts.
pub(super) const MAX_OUTPUT: usize = 1 << 20;
/// Stack size of the thread that parses and evaluates; both recurse to the depth of nesting, which is bounded.
const STACK: usize = 16 << 20;

/// Why a template cannot be used.
#[derive(Debug)]
pub(super) enum Failure {
    /// Not a template, or too large.
    Syntax(String),
    /// It raises an error, or uses an unsupported feature.
    Fails(String),
    /// The budget is exhausted.
    OutOfBudget,
    /// More output than [`MAX_OUTPUT`].
    TooLong,
}

type Result<T, E = Failure> = std::result::Result<T, E>;

fn fails<T>(reason: impl Into<String>) -> Result<T> {
    Err(Failure::Fails(reason.into()))
}

/// A parsed template of supported features only.
pub(super) struct Template {
    body: Vec<tree::Statement>,
}

impl Template {
    /// Parses a template with the settings that transformers uses for Jinja.
    pub(super) fn parse(source: &str) -> Result<Self> {
        if source.len() > MAX_SOURCE {
            return Err(Failure::Syntax(format!("it is longer than {MAX_SOURCE} bytes")));
        }
        on_own_stack(|| {
            check_tags(source)?;
            let parsed = parse(source, "chat_template", syntax()).map_err(|error| syntax_failure(&error))?;
            let ast::Stmt::Template(template) = &parsed else {
                return fails("it is not a template");
            };
            Ok(Self {
                body: tree::statements(&template.children)?,
            })
        })
    }

    /// Evaluates it with `variables`.
    pub(super) fn render(&self, variables: &BTreeMap<&str, Value>) -> Result<String> {
        on_own_stack(|| evaluate::render(&self.body, variables, BUDGET))
    }
}

/// Runs `work` in a thread with a stack of known size.
fn on_own_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("chat-template".into())
            .stack_size(STACK)
            .spawn_scoped(scope, work);
        match thread.map(|thread| thread.join()) {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => fails("its evaluation panicked"),
            Err(error) => fails(format!("cannot start a thread to evaluate it: {error}")),
        }
    })
}

fn syntax() -> SyntaxConfig {
    // Only custom delimiters could make a syntax invalid.
    SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .unwrap_or_default()
}

fn syntax_failure(error: &minijinja::Error) -> Failure {
    Failure::Syntax(format!("{error:#}"))
}

/// Bounds the length of every tag before parsing: the parser recurses along `not not …` and `a.b.c…`.
fn check_tags(source: &str) -> Result<()> {
    let mut tokens = 0;
    for token in tokenize(source, false, syntax()) {
        match token.map_err(|error| syntax_failure(&error))?.0 {
            Token::TemplateData(_) | Token::VariableStart | Token::BlockStart => tokens = 0,
            _ => tokens += 1,
        }
        if tokens > MAX_TAG_TOKENS {
            return Err(Failure::Syntax(format!(
                "a tag has more than {MAX_TAG_TOKENS} tokens"
            )));
        }
    }
    Ok(())
}
