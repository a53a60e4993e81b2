//! Which pages of a document are read: `1-3,7,-1`.

use std::str::FromStr;

use crate::error::DocumentError;

/// Maximum characters of a selection: nobody types more.
const MAX_CHARACTERS: usize = 1024;

/// Pages by number: `3`, `1-3`, `5-` (to the last one), `-1` (the last one) and `-2` (the one before it), separated by commas.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PageSelection {
    /// Empty: all pages.
    parts: Vec<Part>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// From the first to the second, at least 1 each; `None`: to the last page.
    Range(u32, Option<u32>),
    /// From the end; 1 is the last page.
    FromEnd(u32),
}

impl PageSelection {
    /// All pages.
    pub fn all() -> Self {
        Self::default()
    }

    /// Whether it is [`Self::all`].
    pub fn is_all(&self) -> bool {
        self.parts.is_empty()
    }

    /// Numbers of the pages in the order of the selection, each once, of a document with `pages`.
    ///
    /// # Errors
    /// [`DocumentError::NoSuchPage`] for a page beyond the last one, and [`DocumentError::TooManyPages`] for more than `most`.
    pub fn numbers(&self, pages: u32, most: usize) -> Result<Vec<u32>, DocumentError> {
        let mut numbers = Vec::new();
        let mut seen = std::collections::HashSet::new();
        let all = [Part::Range(1, None)];
        let parts = if self.parts.is_empty() {
            &all
        } else {
            self.parts.as_slice()
        };
        for &part in parts {
            let (first, last) = match part {
                Part::Range(first, last) => (first, last.unwrap_or(pages.max(first))),
                Part::FromEnd(back) => {
                    let number = (pages + 1).checked_sub(back).filter(|number| *number > 0);
                    let number = number.ok_or(DocumentError::NoSuchPage { number: back, pages })?;
                    (number, number)
                }
            };
            if last > pages {
                let number = if first > pages { first } else { last };
                return Err(DocumentError::NoSuchPage { number, pages });
            }
            numbers.extend((first..=last).filter(|number| seen.insert(*number)));
        }
        if numbers.len() > most {
            return Err(DocumentError::TooManyPages {
                pages: numbers.len(),
                limit: most,
            });
        }
        Ok(numbers)
    }
}

impl FromStr for PageSelection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "page numbers such as 1-3,7,-1 (-1 is the last page)";
        if text.len() > MAX_CHARACTERS {
            return Err(format!("longer than {MAX_CHARACTERS} characters"));
        }
        let parts = text.split(',').map(|part| Part::parse(part.trim()));
        let parts = parts.collect::<Option<Vec<_>>>();
        Ok(Self {
            parts: parts.ok_or_else(|| format!("must be {EXPECTED}"))?,
        })
    }
}

impl Part {
    fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u32>().ok().filter(|number| digits && *number > 0)
        };
        match text.split_once('-') {
            None => number(text).map(|page| Self::Range(page, Some(page))),
            Some(("", back)) => number(back).map(Self::FromEnd),
            Some((first, "")) => Some(Self::Range(number(first)?, None)),
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::Range(first, Some(last)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn numbers(text: &str, pages: u32) -> Result<Vec<u32>, DocumentError> {
        text.parse::<PageSelection>().expect(text).numbers(pages, 1000)
    }

    #[test]
    fn ranges_single_pages_and_pages_from_the_end() {
        assert_eq!(numbers("1-3,7,-1", 9), Ok(vec![1, 2, 3, 7, 9]));
        assert_eq!(numbers("8-, 2", 9), Ok(vec![8, 9, 2]));
        assert_eq!(numbers("2,1-3,-9", 9), Ok(vec![2, 1, 3]));
        assert_eq!(PageSelection::all().numbers(3, 3), Ok(vec![1, 2, 3]));
    }

    #[test]
    fn pages_that_the_document_does_not_have_are_named() {
        let error = |number, pages| Err(DocumentError::NoSuchPage { number, pages });
        assert_eq!(numbers("10", 9), error(10, 9));
        assert_eq!(numbers("8-12", 9), error(12, 9));
        assert_eq!(numbers("10-", 9), error(10, 9));
        assert_eq!(numbers("-10", 9), error(10, 9));
    }

    #[test]
    fn more_pages_than_the_limit_are_counted() {
        let all = PageSelection::all().numbers(5000, 32);
        assert_eq!(
            all,
            Err(DocumentError::TooManyPages {
                pages: 5000,
                limit: 32
            })
        );
        assert_eq!(
            "1-32"
                .parse::<PageSelection>()
                .map(|some| some.numbers(5000, 32).map(|all| all.len())),
            Ok(Ok(32))
        );
    }

    #[test]
    fn other_texts_are_rejected() {
        for text in [
            "",
            "0",
            "1,",
            "a",
            "3-1",
            "--1",
            "+1",
            "1-2-3",
            "4294967296",
            "1;2",
            &"1,".repeat(600),
        ] {
            assert!(text.parse::<PageSelection>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_selection_is_within_the_document_and_each_page_once(text in "[0-9, -]{0,20}", pages in 1u32..500) {
            if let Ok(selection) = text.parse::<PageSelection>()
                && let Ok(numbers) = selection.numbers(pages, usize::MAX) {
                prop_assert!(!numbers.is_empty());
                prop_assert!(numbers.iter().all(|number| (1..=pages).contains(number)));
                let each: std::collections::HashSet<_> = numbers.iter().collect();
                prop_assert_eq!(each.len(), numbers.len());
            }
        }
    }
}
