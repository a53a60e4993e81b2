//! Chat templates of model folders, evaluated within bounds.
//!
//! A template is a program from a stranger, so it is not handed to an engine for trusted ones: this room evaluates the plain
//! part of Jinja that chat templates use and pays for every step, byte and list item from one allowance. What lies outside
//! that part (macros, includes, filters that multiply) is refused by name when the template is read. minijinja only parses.

mod evaluate;
mod functions;
mod tree;
mod value;

use std::collections::BTreeMap;

use minijinja::machinery::{Token, ast, parse, tokenize};
use minijinja::syntax::SyntaxConfig;

pub(super) use self::value::Value;

/// Most bytes of a template; the longest that were published have some 20,000.
const MAX_SOURCE: usize = 64 * 1024;
/// Most tokens between a tag's delimiters, which bounds how deep an expression can be.
const MAX_TAG_TOKENS: usize = 256;
/// What one rendering may spend: a step costs 1, eight bytes of text 1, a list's item 4. It takes some 0.1 s and 16 MiB.
const ALLOWANCE: u64 = 2_000_000;
/// Most bytes a template may write, message texts not counted.
pub(super) const MAX_OUTPUT: usize = 1 << 20;
/// Stack of the thread that parses and evaluates; both recurse as deep as a template is nested, which is bounded.
const STACK: usize = 16 << 20;

/// Why a template cannot be used.
#[derive(Debug)]
pub(super) enum Failure {
    /// Its text is no template, or beyond the bounds of one.
    Syntax(String),
    /// Its own doing: what it does is wrong or outside the plain part of Jinja.
    Fails(String),
    /// The allowance is spent.
    OutOfWork,
    /// More output than [`MAX_OUTPUT`].
    TooLong,
}

type Result<T, E = Failure> = std::result::Result<T, E>;

fn fails<T>(reason: impl Into<String>) -> Result<T> {
    Err(Failure::Fails(reason.into()))
}

/// A template, read and found plain.
pub(super) struct Template {
    body: Vec<tree::Statement>,
}

impl Template {
    /// Reads a template with the settings that transformers gives Jinja.
    pub(super) fn parse(source: &str) -> Result<Self> {
        if source.len() > MAX_SOURCE {
            return Err(Failure::Syntax(format!("it is longer than {MAX_SOURCE} bytes")));
        }
        on_own_stack(|| {
            check_tags(source)?;
            let parsed = parse(source, "chat_template", syntax()).map_err(|error| syntax_failure(&error))?;
            let ast::Stmt::Template(template) = &parsed else {
                return fails("it is no template");
            };
            Ok(Self {
                body: tree::statements(&template.children)?,
            })
        })
    }

    /// Evaluates it with `variables`.
    pub(super) fn render(&self, variables: &BTreeMap<&str, Value>) -> Result<String> {
        on_own_stack(|| evaluate::render(&self.body, variables, ALLOWANCE))
    }
}

/// Runs `work` in a thread whose stack does not depend on who asks.
fn on_own_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("chat-template".into())
            .stack_size(STACK)
            .spawn_scoped(scope, work);
        match thread.map(|thread| thread.join()) {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => fails("its evaluation ended unexpectedly"),
            Err(error) => fails(format!("the system gives no thread to evaluate it: {error}")),
        }
    })
}

fn syntax() -> SyntaxConfig {
    // Only delimiters could make a syntax invalid, and these are the usual ones.
    SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .unwrap_or_default()
}

fn syntax_failure(error: &minijinja::Error) -> Failure {
    Failure::Syntax(format!("{error:#}"))
}

/// Bounds each tag before the parser sees any: it recurses along `not not …` and `a.b.c…`.
fn check_tags(source: &str) -> Result<()> {
    let mut tokens = 0;
    for token in tokenize(source, false, syntax()) {
        match token.map_err(|error| syntax_failure(&error))?.0 {
            Token::TemplateData(_) | Token::VariableStart | Token::BlockStart => tokens = 0,
            _ => tokens += 1,
        }
        if tokens > MAX_TAG_TOKENS {
            return Err(Failure::Syntax(format!(
                "a tag has more than {MAX_TAG_TOKENS} words and signs"
            )));
        }
    }
    Ok(())
}
