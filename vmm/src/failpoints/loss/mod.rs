//! Random losses: drawn by number from everything that crosses an update, to measure what share of
//! them the scenarios notice.
//!
//! `--plant lose-N` loses one thing in each process that takes over: a value of the saved state or
//! of the CPR state, an event or part of one, part of an answer, or an attribute of the process or
//! of one of its files. The loss is logged as `planted_loss`.

mod attribute;
mod draw;
mod message;
mod value;

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};

use draw::Draw;

pub use message::{lose_of_answer, lose_of_event};

/// No draw has this number.
const NONE: u64 = u64::MAX;

static NUMBER: AtomicU64 = AtomicU64::new(NONE);

/// Where a loss can occur.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seam {
    SavedState,
    CprState,
    Event,
    Answer,
    Attribute,
}

/// Selects the loss with this number.
pub fn lose(number: u64) {
    NUMBER.store(number, Ordering::SeqCst);
}

/// Returns the draw, if something is to be lost at `seam`.
fn drawn(seam: Seam) -> Option<Draw> {
    let number = Some(NUMBER.load(Ordering::SeqCst)).filter(|&number| number != NONE)?;
    let mut draw = Draw::new(number);
    // Most of what crosses an update is in the saved state.
    let at = match draw.below(10) {
        0..=5 => Seam::SavedState,
        6 => Seam::CprState,
        7 => [Seam::Event, Seam::Answer][draw.below(2)],
        _ => Seam::Attribute,
    };
    (at == seam).then_some(draw)
}

fn tell(what: &str) {
    tracing::info!(what, "planted_loss");
}

/// Loses a value of one of the sections of a saved state.
pub fn lose_of_saved_state(mut sections: Vec<(String, &mut Vec<u8>)>) {
    let Some(mut draw) = drawn(Seam::SavedState) else { return };
    let first = draw.below(sections.len().max(1));
    sections.rotate_left(first);
    for (name, data) in sections {
        if let Some(what) = value::lose_of_cbor(data, &mut draw) {
            return tell(&format!("{name}{what}"));
        }
    }
}

/// Loses a value of the CPR state.
pub fn lose_of_cpr_state(body: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    let Some(mut draw) = drawn(Seam::CprState) else { return body };
    let mut body = body.into_owned();
    if let Some(what) = value::lose_of_cbor(&mut body, &mut draw) {
        tell(&format!("cpr-state{what}"));
    }
    body.into()
}

/// Loses an attribute of this process, which has just taken over.
pub fn lose_attribute() {
    if let Some(mut draw) = drawn(Seam::Attribute)
        && let Some(what) = attribute::lose(&mut draw)
    {
        tell(&what);
    }
}
