//! Stop strings in streamed text.

use medical_vision::generation::{Released, StopStrings};
use proptest::prelude::*;

fn stops(stop: &[&str]) -> StopStrings {
    StopStrings::new(&stop.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
}

fn released(text: &str, stopped: bool) -> Released {
    Released {
        text: text.to_owned(),
        stopped,
    }
}

#[test]
fn without_stop_strings_everything_passes_at_once() {
    for mut stop in [stops(&[]), stops(&["", ""])] {
        assert_eq!(stop.push("abc"), released("abc", false));
        assert_eq!(stop.push(""), released("", false));
        assert_eq!(stop.finish(), "");
    }
}

#[test]
fn what_may_be_a_beginning_is_held_back() {
    let mut stop = stops(&["</table>", "END"]);
    assert_eq!(stop.push("x<"), released("x", false));
    assert_eq!(stop.push("/tab"), released("", false));
    assert_eq!(stop.push("E"), released("</tab", false));
    assert_eq!(stop.push("NE"), released("EN", false));
    assert_eq!(stop.push("ND more"), released("", true));
    assert_eq!(stop.push("after"), released("", true));
    assert_eq!(stop.finish(), "");
}

#[test]
fn a_beginning_without_an_end_is_released_at_the_end() {
    let mut stop = stops(&["\n\n\n"]);
    assert_eq!(stop.push("a\n\n"), released("a", false));
    assert_eq!(stop.finish(), "\n\n");
    assert_eq!(stop.finish(), "");
}

#[test]
fn the_stop_string_that_is_complete_first_wins() {
    assert_eq!(stops(&["abcd", "bc"]).push("xabcd"), released("xa", true));
    assert_eq!(stops(&["bc", "abc"]).push("xabcd"), released("x", true));
    assert_eq!(stops(&["aab"]).push("aaaab"), released("aa", true));
    assert_eq!(stops(&["é", "è"]).push("caf\u{e9}"), released("caf", true));
}

/// Looks at every end position in turn; `None` where no stop string occurs.
fn naive<'a>(stop: &[String], text: &'a str) -> Option<&'a str> {
    (1..=text.len()).find_map(|end| {
        let matches = stop
            .iter()
            .filter(|s| !s.is_empty() && text.as_bytes()[..end].ends_with(s.as_bytes()));
        matches.map(|s| s.len()).max().map(|length| &text[..end - length])
    })
}

/// Length of the longest end of `text` that begins a stop string.
fn begun(stop: &[String], text: &str) -> usize {
    let starts = stop
        .iter()
        .flat_map(|s| (1..s.len()).map(move |n| &s.as_bytes()[..n]));
    starts
        .filter(|start| text.as_bytes().ends_with(start))
        .map(<[u8]>::len)
        .max()
        .unwrap_or(0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn any_cut_into_pieces_gives_what_a_plain_search_gives(
        stop in prop::collection::vec("[abé]{0,4}", 0..4), pieces in prop::collection::vec("[abcé]{0,5}", 0..8)
    ) {
        let text = pieces.concat();
        let mut watcher = StopStrings::new(&stop);
        let (mut shown, mut given, mut stopped) = (String::new(), String::new(), false);
        for piece in &pieces {
            let released = watcher.push(piece);
            shown.push_str(&released.text);
            given.push_str(piece);
            stopped = released.stopped;
            prop_assert_eq!(stopped, naive(&stop, &given).is_some());
            if !stopped {
                // No more is held back than has to be.
                prop_assert_eq!(shown.len(), given.len() - begun(&stop, &given));
            }
        }
        match naive(&stop, &text) {
            Some(expected) => {
                prop_assert!(stopped);
                prop_assert_eq!(&shown, expected);
                prop_assert_eq!(watcher.finish(), "");
            }
            None => {
                shown.push_str(&watcher.finish());
                prop_assert_eq!(shown, text);
            }
        }
    }
}
