//! The saved-state format: a sealed envelope, and inside it named, versioned sections.

mod envelope;
pub mod exact;
#[cfg(test)]
pub mod golden;
mod section;

pub use envelope::{Envelope, EnvelopeError, Fingerprint, HEADER as ENVELOPE_HEADER};
pub use section::{STATE_VERSION, SavedState, SectionError, readable_version};
