//! Renders the events of a step, with repetitions collapsed.

use maud::{Markup, html};

/// Most events of a repeated sequence: more than those of an update.
const LONGEST: usize = 24;

/// Renders the events; a sequence that repeats is shown once, with the number of times.
pub fn events(events: &[String]) -> Markup {
    let shown = |event: &str| html! { span.event { (event) } " " };
    html! {
        @for (sequence, times) in collapsed(events) {
            @if times == 1 {
                @for event in sequence { (shown(event)) }
            } @else {
                span.repeated {
                    @for event in sequence { (shown(event)) }
                    strong { "× " (times) }
                }
                " "
            }
        }
    }
}

/// Splits the events into sequences and how many times each follows itself.
fn collapsed(mut rest: &[String]) -> Vec<(&[String], usize)> {
    let mut parts: Vec<(&[String], usize)> = Vec::new();
    while !rest.is_empty() {
        // The sequence that hides most; of several, the shortest.
        let best = (1..=LONGEST.min(rest.len()))
            .rev()
            .map(|length| (length, times(rest, length)))
            .max_by_key(|(length, times)| length * (times - 1));
        let (length, times) = best.unwrap_or((1, 1));
        let length = if times == 1 { 1 } else { length };
        let (covered, after) = rest.split_at(length * times);
        parts.push((&covered[..length], times));
        rest = after;
    }
    parts
}

/// Returns how many times the first `length` events follow themselves.
fn times(events: &[String], length: usize) -> usize {
    let (first, rest) = events.split_at(length);
    1 + rest.chunks_exact(length).take_while(|chunk| *chunk == first).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("", "")]
    #[case("a b c", "a b c")]
    #[case("a a a", "a*3")]
    #[case("s a b a b a b e", "s ab*3 e")]
    #[case("a b b a b b", "abb*2")]
    #[case("a b a", "a b a")]
    fn repeated_sequences_are_shown_once(#[case] events: &str, #[case] shown: &str) {
        let events: Vec<String> = events.split_whitespace().map(str::to_owned).collect();
        let parts = collapsed(&events);
        let covered: usize = parts.iter().map(|(sequence, times)| sequence.len() * times).sum();
        assert_eq!(covered, events.len());
        let text = parts.iter().map(|(sequence, times)| match times {
            1 => sequence.concat(),
            times => format!("{}*{times}", sequence.concat()),
        });
        assert_eq!(text.collect::<Vec<_>>().join(" "), shown);
    }
}
