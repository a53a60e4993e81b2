//! The rooms of the library stand in layers, listed in docs/ARCHITECTURE.md: a room imports only rooms before it in that list.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

/// Every room, lowest first.
fn listed() -> Vec<String> {
    let text = fs::read_to_string(root().join("docs/ARCHITECTURE.md")).unwrap();
    let (_, block) = text.split_once("```layers\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let rooms = block
        .lines()
        .flat_map(|line| line.split_once(": ").unwrap().1.split(' '));
    rooms.map(str::to_owned).collect()
}

/// Rust without comments and the contents of strings, and without modules of tests, which may reach anywhere.
fn code(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['/', '"', '\'']) {
        kept.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = match rest.as_bytes() {
            [b'/', b'/', ..] => rest.find('\n').unwrap_or(rest.len()),
            [b'\'', ..] if char_literal(rest) > 0 => char_literal(rest),
            [b'"', ..] => {
                let raw = kept.len() - kept.trim_end_matches('#').len();
                if raw > 0 || kept.ends_with('r') {
                    let end = format!("\"{}", "#".repeat(raw));
                    1 + rest[1..].find(&end).unwrap() + end.len()
                } else {
                    let mut escaped = false;
                    let end = rest[1..].find(|c: char| {
                        let ends = c == '"' && !escaped;
                        escaped = c == '\\' && !escaped;
                        ends
                    });
                    end.unwrap() + 2
                }
            }
            _ => {
                kept.push_str(&rest[..1]);
                1
            }
        };
        rest = &rest[length..];
    }
    kept.push_str(rest);
    while let Some(at) = kept.find("#[cfg(test)]\nmod ") {
        let end = kept[at..].find([';', '{']).unwrap() + at;
        let mut depth = 0;
        let length = kept[end..].find(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            depth == 0
        });
        kept.replace_range(at..=end + length.unwrap(), "");
    }
    kept
}

/// Length of the character literal that `text` begins with; 0 for a lifetime.
fn char_literal(text: &str) -> usize {
    let mut characters = text.char_indices().skip(1);
    match (characters.next(), characters.next()) {
        (Some((_, '\\')), Some((at, escaped))) => {
            let from = at + escaped.len_utf8();
            text[from..].find('\'').map_or(0, |end| from + end + 1)
        }
        (_, Some((at, '\''))) => at + 1,
        _ => 0,
    }
}

/// The first names of all paths from the crate's root.
fn imported(code: &str) -> BTreeSet<String> {
    let name = |text: &str| -> String {
        let text = text.trim_start();
        text.chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    };
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let path = &code[at + "crate::".len()..];
        let Some(group) = path.strip_prefix('{') else {
            names.insert(name(path));
            continue;
        };
        let mut depth = 0;
        let mut start = 0;
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                ',' | '}' if depth == 0 => {
                    names.insert(name(&group[start..i]));
                    start = i + 1;
                    if c == '}' {
                        break;
                    }
                }
                '}' => depth -= 1,
                _ => {}
            }
        }
    }
    names.remove("");
    // What the crate's root names again.
    let errors = names.remove("Error") | names.remove("Result");
    names.extend(errors.then(|| "error".to_owned()));
    names
}

fn sources(folder: &Path, files: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path.to_str().unwrap().to_owned());
        }
    }
}

#[test]
fn imports_never_point_upward() {
    let rooms = listed();
    let place = |room: &str| rooms.iter().position(|listed| listed == room);
    let folder = root().join("src");
    let mut files = Vec::new();
    sources(&folder, &mut files);
    let (mut seen, mut upward) = (BTreeSet::new(), Vec::new());
    for file in files {
        let path = file.strip_prefix(folder.to_str().unwrap()).unwrap();
        let room = path.split('/').nth(1).unwrap().trim_end_matches(".rs").to_owned();
        if room == "lib" {
            continue;
        }
        let own = place(&room).unwrap_or_else(|| panic!("{room} is in no layer of docs/ARCHITECTURE.md"));
        for name in imported(&code(&fs::read_to_string(&file).unwrap())) {
            let other = place(&name).unwrap_or_else(|| panic!("{path}: crate::{name} is no room"));
            if other > own {
                upward.push(format!("src{path} imports crate::{name}"));
            }
        }
        seen.insert(room);
    }
    assert!(upward.is_empty(), "{}", upward.join("\n"));
    assert_eq!(
        seen,
        rooms.into_iter().collect(),
        "docs/ARCHITECTURE.md lists rooms that are not there"
    );
}

#[test]
fn imports_are_found_in_every_form() {
    let text = "use crate::{Error, fs::{a, b}, cli};\n// crate::comment\nlet s = \"crate::text\\\"\"; let r = r#\"crate::raw\"#;\n\
                let c = '\"'; crate::engine::run('a');\n#[cfg(test)]\nmod tests {\n    use crate::server::x;\n    fn f() {}\n}\n\
                pub use crate::data::Set;";
    let found: Vec<String> = imported(&code(text)).into_iter().collect();
    assert_eq!(found, ["cli", "data", "engine", "error", "fs"]);
}
