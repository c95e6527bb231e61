//! Losing messages to clients: an event, or part of one, or part of an answer.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use cpr_qmp::message::Event;
use serde_json::Value;

use super::draw::Draw;
use super::{Seam, drawn, tell};

/// Minimum number of events of an update in the new process; one if the guest is paused.
const EVENTS: usize = 2;
/// Minimum number of queries of a client that looks at everything.
const ANSWERS: usize = 16;
/// Not the shape of any answer.
const NONE: u64 = 0;

static EVENTS_SEEN: AtomicUsize = AtomicUsize::new(0);
static ANSWERS_SEEN: AtomicUsize = AtomicUsize::new(0);
/// The shape of the answers that lose something.
static SHAPE: AtomicU64 = AtomicU64::new(NONE);

/// Returns what becomes of an event; `None` if it is not sent.
pub fn lose_of_event(mut event: Event) -> Option<Event> {
    let Some(mut draw) = drawn(Seam::Event) else { return Some(event) };
    let which = draw.below(EVENTS);
    if EVENTS_SEEN.fetch_add(1, Ordering::SeqCst) != which {
        return Some(event);
    }
    let name = event.event.clone();
    match draw.below(4) {
        0 => {
            tell(&format!("event {name}"));
            return None;
        }
        1 if event.data.is_some() => {
            event.data = None;
            tell(&format!("the data of event {name}"));
        }
        2 => {
            event.timestamp.microseconds = 0;
            tell(&format!("the microseconds of event {name}"));
        }
        _ => {
            event.timestamp.seconds = 0;
            tell(&format!("the seconds of event {name}"));
        }
    }
    Some(event)
}

/// Returns what becomes of an answer, and of all others that have the same members.
pub fn lose_of_answer(mut answer: Value) -> Value {
    let Some(mut draw) = drawn(Seam::Answer) else { return answer };
    let which = draw.below(ANSWERS);
    let Some(shape) = shape(&answer) else { return answer };
    if ANSWERS_SEEN.fetch_add(1, Ordering::SeqCst) == which {
        SHAPE.store(shape, Ordering::SeqCst);
    }
    if SHAPE.load(Ordering::SeqCst) == shape
        && let Some(what) = lose(&mut answer, &mut draw)
    {
        tell(&format!("answer{what}"));
    }
    answer
}

/// Returns a hash of an answer's member names, if it has any.
fn shape(answer: &Value) -> Option<u64> {
    let members = match answer {
        Value::Array(items) => items.first()?.as_object()?,
        Value::Object(members) => members,
        _ => return None,
    };
    let mut hasher = DefaultHasher::new();
    members.keys().collect::<Vec<_>>().hash(&mut hasher);
    (!members.is_empty()).then(|| hasher.finish().max(NONE + 1))
}

fn lose(value: &mut Value, draw: &mut Draw) -> Option<String> {
    match value {
        Value::Object(members) => {
            let names: Vec<String> = members.keys().cloned().collect();
            let leave_out = draw.below(3) == 0;
            draw.all_below(names.len()).find_map(|at| {
                let name = &names[at];
                if leave_out {
                    members.shift_remove(name);
                    return Some(format!(".{name} left out"));
                }
                Some(format!(".{name}{}", lose(members.get_mut(name)?, draw)?))
            })
        }
        Value::Array(items) => {
            if items.len() > 1 && draw.below(3) == 0 {
                let at = draw.below(items.len());
                items.remove(at);
                return Some(format!("[{at}] left out"));
            }
            draw.all_below(items.len())
                .find_map(|at| Some(format!("[{at}]{}", lose(&mut items[at], draw)?)))
        }
        Value::Number(number) if number.as_f64() != Some(0.0) => {
            let was = std::mem::replace(value, Value::from(0));
            Some(format!(" {was} becomes 0"))
        }
        Value::Bool(is) => {
            *is = !*is;
            Some(format!(" becomes {is}"))
        }
        Value::String(text) if !text.is_empty() => {
            let was = std::mem::take(text);
            Some(format!(" {was:?} becomes empty"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_part_of_an_answer_can_be_lost() {
        let answer = json!({ "running": true, "status": "running", "count": 3, "zero": 0 });
        let mut lost: Vec<String> = (0..200)
            .filter_map(|number| {
                let mut answer = answer.clone();
                let what = lose(&mut answer, &mut Draw::new(number));
                assert!(what.is_some());
                what
            })
            .collect();
        lost.sort();
        lost.dedup();
        insta::assert_debug_snapshot!(lost);
    }

    #[test]
    fn answers_of_the_same_members_have_the_same_shape() {
        let shape = |value| shape(&value);
        assert_eq!(shape(json!({ "a": 1 })), shape(json!({ "a": 2 })));
        assert_eq!(shape(json!([{ "a": 1 }])), shape(json!({ "a": 2 })));
        assert_ne!(shape(json!({ "a": 1 })), shape(json!({ "b": 1 })));
        assert_eq!([json!({}), json!([]), json!(3)].map(shape), [None; 3]);
    }
}
