//! Wraps paragraphs exactly like Python's `textwrap.wrap`.

use std::collections::VecDeque;

/// Breaks one paragraph into lines of at most `columns` characters; a blank one is one empty line.
///
/// Breaks at spaces, after the hyphens of hyphenated words and around dashes ("--"); a word longer than a line is cut.
/// Spaces at a break are dropped, others stay; a tab counts as one space.
pub fn wrap(paragraph: &str, columns: usize) -> Vec<String> {
    let columns = columns.max(1);
    let paragraph = paragraph.replace(char::is_control, " ");
    let mut pieces: VecDeque<&str> = pieces(&paragraph).into();
    let mut lines = Vec::new();
    while !pieces.is_empty() {
        if !lines.is_empty() && pieces.front().is_some_and(|piece| is_blank(piece)) {
            pieces.pop_front();
        }
        let (mut line, mut length) = (Vec::new(), 0);
        while let Some(piece) = pieces.pop_front_if(|piece| length + piece.chars().count() <= columns) {
            length += piece.chars().count();
            line.push(piece);
        }
        if let Some(long) = pieces.pop_front_if(|piece| piece.chars().count() > columns) {
            let (fits, rest) = long.split_at(cut(long, columns - length));
            line.push(fits);
            pieces.push_front(rest);
        }
        line.pop_if(|piece| is_blank(piece));
        if !line.is_empty() {
            lines.push(line.concat());
        }
    }
    if lines.is_empty() {
        lines.push(String::new());
    }
    lines
}

fn is_blank(piece: &str) -> bool {
    piece.bytes().all(|byte| byte == b' ')
}

/// Number of bytes of an overlong word that fit into `room` characters; breaks after a hyphen if there is one.
fn cut(word: &str, room: usize) -> usize {
    let end = word.char_indices().nth(room).map_or(word.len(), |(byte, _)| byte);
    match word[..end].rfind('-') {
        Some(hyphen) if word[..hyphen].contains(|character| character != '-') => hyphen + 1,
        _ => end,
    }
}

/// Splits into runs of spaces and unbreakable parts of words.
fn pieces(paragraph: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = paragraph;
    while !rest.is_empty() {
        let spaces = rest.len() - rest.trim_start_matches(' ').len();
        let length = if spaces > 0 {
            spaces
        } else {
            rest.find(' ').unwrap_or(rest.len())
        };
        let (piece, after) = rest.split_at(length);
        let mut start = 0;
        for point in break_points(piece) {
            pieces.push(&piece[start..point]);
            start = point;
        }
        pieces.push(&piece[start..]);
        rest = after;
    }
    pieces
}

/// Byte positions in a word at which a line may break.
fn break_points(word: &str) -> Vec<usize> {
    if !word.contains('-') {
        return Vec::new();
    }
    let letters: Vec<(usize, char)> = word.char_indices().collect();
    let at = |index: Option<usize>| {
        index
            .and_then(|index| letters.get(index))
            .map(|(_, letter)| *letter)
    };
    let mut points = Vec::new();
    for (index, (byte, letter)) in letters.iter().enumerate() {
        let before = |distance: usize| at(index.checked_sub(distance));
        let after = |distance: usize| at(Some(index + distance));
        if *letter == '-' && ends_a_part(&before) && starts_a_part(&after) {
            points.push(byte + 1);
        }
        let dash = (*letter == '-') != (before(1) == Some('-')) && is_dash_edge(&letters, index);
        if dash {
            points.push(*byte);
        }
    }
    points.dedup();
    points
}

/// Whether two letters, or a letter, a hyphen and one more character precede the hyphen: "follow-", "x-r-".
fn ends_a_part(before: &impl Fn(usize) -> Option<char>) -> bool {
    is_letter(before(1)) && is_letter(before(2))
        || is_letter(before(3)) && before(2) == Some('-') && is_word_or_point(before(1))
}

/// Whether two letters follow the hyphen, possibly with a hyphen in between.
fn starts_a_part(after: &impl Fn(usize) -> Option<char>) -> bool {
    is_letter(after(1)) && (is_letter(after(2)) || after(2) == Some('-') && is_letter(after(3)))
}

/// Whether a dash of two or more hyphens between words begins or ends at `index`.
fn is_dash_edge(letters: &[(usize, char)], index: usize) -> bool {
    let is_hyphen = |index: &usize| letters.get(*index).is_some_and(|(_, letter)| *letter == '-');
    let first = (0..index).rev().take_while(is_hyphen).last().unwrap_or(index);
    let end = (first..)
        .take_while(is_hyphen)
        .last()
        .map_or(first, |last| last + 1);
    let letter = |index: Option<usize>| {
        index
            .and_then(|index| letters.get(index))
            .map(|(_, letter)| *letter)
    };
    end - first >= 2
        && is_word_or_point(letter(first.checked_sub(1)))
        && letter(Some(end)).is_some_and(is_word)
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn is_letter(character: Option<char>) -> bool {
    character.is_some_and(|character| is_word(character) && !character.is_numeric())
}

fn is_word_or_point(character: Option<char>) -> bool {
    character.is_some_and(|character| {
        is_word(character) || matches!(character, '!' | '"' | '\'' | '&' | '.' | ',' | '?')
    })
}

/// Replaces each run of white space by one space; removes it at both ends.
pub(crate) fn collapse_whitespace(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_break_as_in_python() {
        // Each: textwrap.wrap(paragraph, 10) or [""] of Python 3.12.
        for (paragraph, lines) in [
            ("", &[""][..]),
            ("   ", &[""]),
            ("one two three", &["one two", "three"]),
            ("  indented words", &["  indented", "words"]),
            ("two  spaces  stay", &["two", "spaces", "stay"]),
            ("a follow-up visit", &["a follow-", "up visit"]),
            ("dose q4-6h 12-15 mg", &["dose q4-6h", "12-15 mg"]),
            ("x-ray-like a", &["x-ray-like", "a"]),
            ("well--known drug", &["well--", "known drug"]),
            ("exactly-10 ten", &["exactly-10", "ten"]),
            ("abcdefghijklmno", &["abcdefghij", "klmno"]),
            ("ab cdefghijklmnop", &["ab cdefghi", "jklmnop"]),
            ("ab cde-fghijklmnopq", &["ab cde-fgh", "ijklmnopq"]),
            ("a --- b", &["a --- b"]),
            ("see.--Then", &["see.--Then"]),
            ("trailing   ", &["trailing"]),
        ] {
            assert_eq!(wrap(paragraph, 10), lines, "{paragraph:?}");
        }
    }

    proptest! {
        #[test]
        fn lines_are_short_enough_and_keep_all_letters(paragraph in "[a-z0-9 .,'-]{0,200}", columns in 1usize..40) {
            let lines = wrap(&paragraph, columns);
            prop_assert!(lines.iter().all(|line| line.chars().count() <= columns));
            let letters = |text: &str| text.chars().filter(|letter| *letter != ' ').collect::<String>();
            prop_assert_eq!(letters(&lines.concat()), letters(&paragraph));
        }

        #[test]
        fn any_text_is_wrapped(paragraph in any::<String>(), columns in 0usize..100) {
            prop_assert!(!wrap(&paragraph, columns).is_empty());
        }

        #[test]
        fn wrapping_is_idempotent(paragraph in "[a-z ]{0,200}") {
            for line in wrap(&paragraph, 30) {
                prop_assert_eq!(wrap(&line, 30), [line]);
            }
        }
    }
}
