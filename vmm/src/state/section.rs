//! Sections: each with a name, an instance, a version of its own, and CBOR inside.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::envelope::{Envelope, EnvelopeError, Fingerprint};

/// Version 1: a CBOR array of sections.
pub const STATE_VERSION: u32 = 1;
const ENVELOPE: Envelope = Envelope { magic: *b"CPRSTAT\n", version: STATE_VERSION };

/// Returns the version of the saved state that this binary reads.
pub fn readable_version() -> u32 {
    seam!(readable_version(STATE_VERSION))
}
/// Maximum number of sections that are accepted.
const MAX_SECTIONS: usize = 4096;
/// Maximum nesting of CBOR that is accepted.
const MAX_DEPTH: usize = 32;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Section {
    name: String,
    instance: u32,
    version: u32,
    #[serde(with = "serde_bytes")]
    data: Vec<u8>,
}

/// A saved state, section by section.
#[derive(Clone, Debug, Default)]
pub struct SavedState {
    sections: Vec<Section>,
}

/// Errors from reading a saved state.
#[derive(Debug, thiserror::Error)]
pub enum SectionError {
    /// The envelope is invalid.
    #[error("not a saved state: {0}")]
    Envelope(#[from] EnvelopeError),
    /// The list of sections is invalid.
    #[error("cannot decode the saved state's list of sections: {0}")]
    List(String),
    /// A section is missing.
    #[error("the saved state has no section {name}.{instance}")]
    Missing {
        /// Its name.
        name: &'static str,
        /// Its instance.
        instance: u32,
    },
    /// A section is newer or older than this binary understands.
    #[error("section {name}.{instance} has version {found}, this binary reads version {known}")]
    Version {
        /// Its name.
        name: &'static str,
        /// Its instance.
        instance: u32,
        /// The version it has.
        found: u32,
        /// The version that is known.
        known: u32,
    },
    /// A section's content is invalid.
    #[error("cannot decode section {name}.{instance}: {}", why(source))]
    Decode {
        /// Its name.
        name: &'static str,
        /// Its instance.
        instance: u32,
        /// The underlying error.
        source: ciborium::de::Error<std::io::Error>,
    },
    /// A section is unknown.
    #[error("the saved state has section {0}, which this binary does not know")]
    Unknown(String),
    /// A section is duplicated.
    #[error("the saved state has section {0} twice")]
    Twice(String),
}

/// Returns only the message of an error in the content; other errors have none.
fn why(error: &ciborium::de::Error<std::io::Error>) -> String {
    match error {
        ciborium::de::Error::Semantic(_, why) => why.clone(),
        other => other.to_string(),
    }
}

impl SavedState {
    /// Adds a section.
    pub fn put<T: Serialize>(&mut self, name: &str, instance: u32, version: u32, content: &T) {
        let mut data = Vec::new();
        ciborium::into_writer(content, &mut data)
            .expect("writing to memory cannot fail and no state has a type CBOR lacks");
        self.sections.push(Section { name: name.to_owned(), instance, version, data });
    }

    /// Takes a section out.
    pub fn take<T: DeserializeOwned>(
        &mut self,
        name: &'static str,
        instance: u32,
        known: u32,
    ) -> Result<T, SectionError> {
        let at = self.sections.iter().position(|s| s.name == name && s.instance == instance);
        let at = at.ok_or(SectionError::Missing { name, instance })?;
        let section = self.sections.swap_remove(at);
        if section.version != known {
            let found = section.version;
            return Err(SectionError::Version { name, instance, found, known });
        }
        ciborium::de::from_reader_with_recursion_limit(section.data.as_slice(), MAX_DEPTH)
            .map_err(|source| SectionError::Decode { name, instance, source })
    }

    /// Succeeds if every section was taken: one that is not loaded would be lost silently.
    pub fn finish(self) -> Result<(), SectionError> {
        match self.sections.first() {
            None => Ok(()),
            Some(left) => Err(SectionError::Unknown(format!("{}.{}", left.name, left.instance))),
        }
    }

    /// Name, instance, version and content of each section.
    #[cfg(test)]
    pub fn contents(&self) -> impl Iterator<Item = (&str, u32, u32, &[u8])> {
        self.sections.iter().map(|s| (s.name.as_str(), s.instance, s.version, s.data.as_slice()))
    }

    /// Encodes the state into the bytes of a file.
    pub fn encode(&self) -> (Vec<u8>, Fingerprint) {
        let mut body = Vec::new();
        ciborium::into_writer(&self.sections, &mut body)
            .expect("writing to memory cannot fail and sections have no type CBOR lacks");
        ENVELOPE.seal(&body)
    }

    /// Decodes the bytes of a file.
    pub fn decode(bytes: &[u8]) -> Result<(Self, Fingerprint), SectionError> {
        let envelope = Envelope { version: readable_version(), ..ENVELOPE };
        let (mut body, fingerprint) = envelope.open(bytes)?;
        let list = |text: String| SectionError::List(text);
        #[cfg_attr(not(feature = "failpoints"), expect(unused_mut))]
        let mut sections: Vec<Section> =
            ciborium::de::from_reader_with_recursion_limit(&mut body, MAX_DEPTH)
                .map_err(|error| list(error.to_string()))?;
        if !body.is_empty() {
            return Err(list(format!("{} bytes follow it", body.len())));
        }
        if sections.len() > MAX_SECTIONS {
            return Err(list(format!("{} sections are too many", sections.len())));
        }
        for (at, section) in sections.iter().enumerate() {
            let same =
                |other: &&Section| other.name == section.name && other.instance == section.instance;
            if sections[..at].iter().any(|other| same(&other)) {
                return Err(SectionError::Twice(format!("{}.{}", section.name, section.instance)));
            }
        }
        #[cfg(feature = "failpoints")]
        crate::failpoints::seam::saved_state(
            sections.iter_mut().map(|s| (format!("{}.{}", s.name, s.instance), &mut s.data)),
        );
        Ok((Self { sections }, fingerprint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> SavedState {
        let mut state = SavedState::default();
        state.put("clock", 0, 1, &42_u64);
        state.put("vcpu", 0, 2, &"zero");
        state.put("vcpu", 1, 2, &"one");
        state
    }

    fn reread(state: &SavedState) -> Result<SavedState, SectionError> {
        SavedState::decode(&state.encode().0).map(|(state, _)| state)
    }

    #[test]
    fn sections_come_back_by_name_and_instance() {
        let mut state = reread(&state()).unwrap();
        assert_eq!(state.take::<String>("vcpu", 1, 2).unwrap(), "one");
        assert_eq!(state.take::<u64>("clock", 0, 1).unwrap(), 42);
        assert_eq!(state.take::<String>("vcpu", 0, 2).unwrap(), "zero");
        state.finish().unwrap();
    }

    #[test]
    fn mismatched_sections_are_named() {
        let mut twice = state();
        twice.put("clock", 0, 1, &43_u64);
        let fresh = || reread(&state()).unwrap();
        let errors = [
            fresh().take::<u64>("pit", 0, 1).unwrap_err(),
            fresh().take::<u64>("clock", 0, 2).unwrap_err(),
            fresh().take::<String>("clock", 0, 1).unwrap_err(),
            fresh().finish().unwrap_err(),
            reread(&twice).unwrap_err(),
        ];
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        insta::assert_debug_snapshot!(texts);
    }

    #[test]
    fn rejects_deep_nesting() {
        let (bytes, _) = ENVELOPE.seal(&[0x81; 10_000]);
        assert!(matches!(SavedState::decode(&bytes), Err(SectionError::List(_))));
    }

    #[test]
    fn false_length_allocates_nothing() {
        // An array that says it has 2^60 elements.
        let (bytes, _) = ENVELOPE.seal(&[0x9b, 0x10, 0, 0, 0, 0, 0, 0, 0]);
        assert!(matches!(SavedState::decode(&bytes), Err(SectionError::List(_))));
    }
}
