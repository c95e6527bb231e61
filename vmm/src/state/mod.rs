//! The saved-state format: named, versioned sections, in a sealed envelope or in a stream of frames.

mod envelope;
pub mod exact;
mod formats;
mod frames;
#[cfg(test)]
pub mod golden;
mod section;

pub use envelope::{Envelope, EnvelopeError, Fingerprint, HEADER as ENVELOPE_HEADER};
pub use formats::{
    Formats, KnownSection, OLDEST_VERSION, STATE_VERSION, known_versions, named, newest_common,
};
pub use frames::FrameError;
pub use section::{SavedState, SectionError};
