//! The documentation names files, headings and decisions that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All files below the folders, relative to the project.
fn files(folders: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let path = path.strip_prefix(root()).unwrap();
                found.push(path.to_str().unwrap().to_owned());
            }
        }
    }
    found
}

/// The Markdown files of docs/ and of the project folder.
fn pages() -> Vec<String> {
    let top = fs::read_dir(root()).unwrap();
    let top = top.filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let pages = files(&["docs"]).into_iter().chain(top);
    pages.filter(|name| name.ends_with(".md")).collect()
}

/// `a/{b,c}.rs` → `a/b.rs`, `a/c.rs`.
fn expanded(path: &str) -> Vec<String> {
    let Some((before, (list, after))) = path
        .split_once('{')
        .and_then(|(before, rest)| Some((before, rest.split_once('}')?)))
    else {
        return vec![path.to_owned()];
    };
    let paths = list.split(',').map(|part| format!("{before}{part}{after}"));
    paths.flat_map(|path| expanded(&path)).collect()
}

/// Paths of source files and folders in `text`. Placeholders such as `NAME` and `*` are left out.
fn sources(text: &str) -> BTreeSet<String> {
    let of_path = |c: char| c.is_ascii_alphanumeric() || "_./{},*-".contains(c);
    let tokens = text.split(|c| !of_path(c));
    let paths = tokens.flat_map(|token| expanded(token.trim_matches(['.', ',', '/', '-'])));
    let is_source = |path: &String| {
        let extension = path.rsplit_once('.').map(|(_, extension)| extension);
        let is_code = matches!(extension, Some("rs" | "cpp" | "hpp" | "cu" | "py" | "sh"));
        let is_below = ["src/", "tests/", "scripts/", "examples/"]
            .iter()
            .any(|folder| path.starts_with(folder));
        let is_placeholder =
            path.contains('*') || path.split(['/', '.']).any(|part| matches!(part, "NAME" | "PART"));
        (is_code || is_below) && !is_placeholder
    };
    paths.filter(is_source).collect()
}

#[test]
fn named_source_files_exist() {
    let files = files(&[
        "src",
        "tests/suite",
        "tests/fixtures",
        "scripts",
        "api",
        "benchmarks",
        "docs",
        "examples",
    ]);
    let exists = |path: &str| {
        // In full, or from a room on: "quantize/select.rs", "select.rs".
        root().join(path).exists() || files.iter().any(|file| file.ends_with(&format!("/{path}")))
    };
    let mut missing = Vec::new();
    for page in pages() {
        let named = sources(&read(&root().join(&page)));
        let absent = named.into_iter().filter(|path| !exists(path));
        missing.extend(absent.map(|path| format!("{page}: {path}")));
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// Words of letters, digits and underscores.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
}

#[test]
fn code_names_in_the_architecture_exist() {
    let code: Vec<String> = files(&["src", "tests/suite", "benchmarks", "scripts"])
        .into_iter()
        .filter(|file| file.contains('.') && !file.ends_with(".json"))
        .chain(["Makefile".to_owned(), "Cargo.toml".to_owned()])
        .map(|file| format!("{file} {}", read(&root().join(&file))))
        .collect();
    let known: BTreeSet<&str> = code.iter().flat_map(|text| words(text)).collect();
    let text = read(&root().join("docs/ARCHITECTURE.md"));
    let (_, text) = text.split_once("## Rooms").unwrap();
    // Every second part is a diagram: names have an underscore or `::`.
    let parts: Vec<&str> = text.split("```").collect();
    let diagrams = parts.iter().skip(1).step_by(2);
    let tokens = diagrams.flat_map(|text| text.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':'));
    let in_diagrams = tokens.filter(|token| token.contains('_') || token.contains("::"));
    // In prose every second part is between backticks.
    let prose = parts.iter().step_by(2);
    let in_prose = prose.flat_map(|text| text.split('`').skip(1).step_by(2));
    let unknown: BTreeSet<&str> = in_prose
        .chain(in_diagrams)
        .flat_map(words)
        .filter(|word| !known.contains(word))
        .collect();
    assert!(unknown.is_empty(), "docs/ARCHITECTURE.md names {unknown:?}");
}

/// GitHub's anchors of the headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let title = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = title
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.collect::<String>().replace(' ', "-")
    };
    headings.map(anchor).collect()
}

#[test]
fn links_lead_to_files_and_headings() {
    let mut broken = Vec::new();
    for page in pages() {
        let path = root().join(&page);
        let text = read(&path);
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split([')', ' ']).next().unwrap();
            if target.starts_with("http") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = match file {
                "" => path.clone(),
                file => path.parent().unwrap().join(file),
            };
            let is_there = file.exists() && (anchor.is_empty() || anchors(&read(&file)).contains(anchor));
            if !is_there {
                broken.push(format!("{page}: {target}"));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Ids such as `Q-07` in `text`.
fn ids(text: &str) -> BTreeSet<&str> {
    let tokens = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    let is_id = |token: &&str| {
        let token = token.as_bytes();
        token.len() == 4
            && token[0].is_ascii_uppercase()
            && token[1] == b'-'
            && token[2..].iter().all(u8::is_ascii_digit)
    };
    tokens.filter(is_id).collect()
}

#[test]
fn decisions_are_listed_once_and_cited_ids_exist() {
    let folder = root().join("docs/decisions");
    let index = read(&folder.join("README.md"));
    let listed: BTreeMap<&str, &str> = index
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split_once(" | "))
        .filter(|(id, _)| ids(id).contains(id))
        .map(|(id, rest)| (id, rest.split(" | ").next().unwrap()))
        .collect();
    let mut recorded = BTreeMap::new();
    for file in files(&["docs/decisions"]) {
        let text = read(&root().join(&file));
        for heading in text.lines().filter_map(|line| line.strip_prefix("## ")) {
            let Some((id, title)) = heading.split_once(": ").filter(|(id, _)| ids(id).contains(id)) else {
                continue;
            };
            let earlier = recorded.insert(id.to_owned(), title.to_owned());
            assert_eq!(earlier, None, "{id} is recorded twice");
        }
    }
    for (id, title) in &recorded {
        assert_eq!(listed.get(id.as_str()), Some(&title.as_str()), "{id} in the list");
    }
    assert_eq!(listed.len(), recorded.len(), "the list has more than is recorded");
    let code = files(&["src", "scripts", "benchmarks", "tests/suite"]);
    let code = code
        .into_iter()
        .filter(|file| file.ends_with(".rs") || file.ends_with(".py"));
    for file in code.chain(pages()) {
        for id in ids(&read(&root().join(&file))) {
            assert!(recorded.contains_key(id), "{file} cites {id}");
        }
    }
}

#[test]
fn paths_are_found_in_prose() {
    let text = "`src/report/{compile,pages}.rs`, quantize/nf4/folder.rs, patches.rs<br/>cli/NAME.rs, \
                scripts/*.rs; tests/suite/.";
    let found: Vec<String> = sources(text).into_iter().collect();
    assert_eq!(
        found,
        [
            "patches.rs",
            "quantize/nf4/folder.rs",
            "src/report/compile.rs",
            "src/report/pages.rs",
            "tests/suite"
        ]
    );
}
