//! A page as headings, paragraphs, lists, tables and figures, rendered as Markdown and HTML.

use std::fmt::Write;

use crate::console::without_control_characters;
use crate::rendering::collapse_whitespace;

/// One part of a page. Texts are plain; each renderer escapes them.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Block {
    /// Level 1 is the title.
    Heading(u8, String),
    Paragraph(String),
    List(Vec<String>),
    /// The first column is left-aligned text, the others are right-aligned figures.
    Table {
        head: Vec<String>,
        rows: Vec<Vec<String>>,
    },
    Figure {
        /// Path relative to the Markdown file.
        file: String,
        caption: String,
        svg: String,
    },
}

/// Renders GitHub-flavoured Markdown.
pub(super) fn markdown(page: &[Block]) -> String {
    let mut text = String::new();
    for block in page {
        if !text.is_empty() {
            text.push('\n');
        }
        // Writing to a string cannot fail.
        let _ = match block {
            Block::Heading(level, heading) => {
                writeln!(
                    text,
                    "{} {}",
                    "#".repeat(usize::from(*level)),
                    for_markdown(heading)
                )
            }
            Block::Paragraph(paragraph) => writeln!(text, "{}", for_markdown(paragraph)),
            Block::List(items) => items
                .iter()
                .try_for_each(|item| writeln!(text, "- {}", for_markdown(item))),
            Block::Table { head, rows } => markdown_table(&mut text, head, rows),
            Block::Figure { file, caption, .. } => {
                writeln!(text, "![{}]({file})", for_markdown(caption))
            }
        };
    }
    text
}

fn markdown_table(text: &mut String, head: &[String], rows: &[Vec<String>]) -> std::fmt::Result {
    let line = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| for_markdown(cell)).collect();
        format!("| {} |", cells.join(" | "))
    };
    let rule: Vec<&str> = (0..head.len())
        .map(|column| if column == 0 { "---" } else { "---:" })
        .collect();
    writeln!(text, "{}\n| {} |", line(head), rule.join(" | "))?;
    rows.iter().try_for_each(|row| writeln!(text, "{}", line(row)))
}

/// Escapes plain text for Markdown, on one line.
fn for_markdown(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in one_line(text).chars() {
        match character {
            '\\' | '|' | '*' | '`' | '[' | ']' | '#' => {
                escaped.push('\\');
                escaped.push(character);
            }
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// Escapes plain text for HTML, on one line.
fn for_html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in one_line(text).chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// `text` without line breaks and control characters.
pub(super) fn one_line(text: &str) -> String {
    without_control_characters(&collapse_whitespace(text))
}

const STYLE: &str = "\
:root{color-scheme:light}
body{font:15px/1.5 system-ui,sans-serif;color:#1f2933;background:#fff;max-width:960px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.7rem;border-bottom:3px solid #1f5fa8;padding-bottom:.4rem}
h2{font-size:1.2rem;margin-top:2rem;color:#1f5fa8}
table{border-collapse:collapse;width:100%;margin:.8rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .6rem;border-bottom:1px solid #d9e2ec;text-align:right;vertical-align:top}
th{background:#f0f4f8}
th:first-child,td:first-child{text-align:left}
figure{margin:1rem 0}figure svg{max-width:100%;height:auto}figcaption{color:#52606d;font-size:.9rem}
@media print{body{margin:0}h2{break-after:avoid}figure,tr{break-inside:avoid}}
";

/// Renders one self-contained HTML file: inline style and plots, no scripts.
pub(super) fn html(page: &[Block]) -> String {
    let title = page.iter().find_map(|block| match block {
        Block::Heading(1, heading) => Some(for_html(heading)),
        _ => None,
    });
    let mut text = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n",
        title.unwrap_or_default()
    );
    for block in page {
        let _ = match block {
            Block::Heading(level, heading) => {
                writeln!(text, "<h{level}>{}</h{level}>", for_html(heading))
            }
            Block::Paragraph(paragraph) => writeln!(text, "<p>{}</p>", for_html(paragraph)),
            Block::List(items) => {
                let items: String = items
                    .iter()
                    .map(|item| format!("<li>{}</li>\n", for_html(item)))
                    .collect();
                writeln!(text, "<ul>\n{items}</ul>")
            }
            Block::Table { head, rows } => {
                let row = |tag: &str, cells: &[String]| {
                    let cells: String = cells
                        .iter()
                        .map(|cell| format!("<{tag}>{}</{tag}>", for_html(cell)))
                        .collect();
                    format!("<tr>{cells}</tr>\n")
                };
                let rows: String = rows.iter().map(|cells| row("td", cells)).collect();
                writeln!(
                    text,
                    "<table>\n<thead>\n{}</thead>\n<tbody>\n{rows}</tbody>\n</table>",
                    row("th", head)
                )
            }
            Block::Figure { caption, svg, .. } => writeln!(
                text,
                "<figure>\n{}\n<figcaption>{}</figcaption>\n</figure>",
                svg.trim(),
                for_html(caption)
            ),
        };
    }
    text.push_str("</body>\n</html>\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(text: &str) -> Vec<Block> {
        let text = text.to_owned();
        vec![
            Block::Heading(1, text.clone()),
            Block::Paragraph(text.clone()),
            Block::List(vec![text.clone()]),
            Block::Table {
                head: vec!["what".to_owned(), "how much".to_owned()],
                rows: vec![vec![text.clone(), "1".to_owned()]],
            },
            Block::Figure {
                file: "plots/memory.svg".to_owned(),
                caption: text,
                svg: "<svg xmlns=\"http://www.w3.org/2000/svg\"></svg>".to_owned(),
            },
        ]
    }

    #[test]
    fn a_page_is_rendered_as_markdown_and_html() {
        let expected = "# text\n\ntext\n\n- text\n\n| what | how much |\n| --- | ---: |\n| text | 1 |\n\n![text](plots/memory.svg)\n";
        assert_eq!(markdown(&page("text")), expected);
        let html = html(&page("text"));
        assert!(html.contains("<tr><td>text</td><td>1</td></tr>"), "{html}");
        assert!(
            html.contains("<svg xmlns") && html.contains("<figcaption>text</figcaption>"),
            "{html}"
        );
        assert!(html.starts_with("<!DOCTYPE html>") && html.ends_with("</html>\n"));
    }

    #[test]
    fn text_cannot_become_markup() {
        let hostile = "a|b\n# c <script>alert(\"1\")</script> [x](y) `z` \u{1b}[31m &amp;";
        let text = markdown(&page(hostile));
        assert!(!text.contains("<script") && !text.contains('\u{1b}'), "{text}");
        assert!(text.contains("a\\|b \\# c &lt;script"), "{text}");
        assert_eq!(
            text.lines()
                .filter(|line| line.starts_with("| a"))
                .map(|line| line.matches(" | ").count())
                .collect::<Vec<_>>(),
            [1]
        );
        let text = html(&page(hostile));
        assert!(!text.contains("<script") && !text.contains('\u{1b}'), "{text}");
        assert!(text.contains("&amp;amp;"), "{text}");
    }
}
