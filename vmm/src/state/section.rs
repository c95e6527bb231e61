//! Sections: each with a name, an instance, a version of its own, and CBOR inside.

use std::io::Read;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::envelope::{Envelope, EnvelopeError, Fingerprint};
use super::formats::{OLDEST_VERSION, STATE_VERSION, known_versions, named};
use super::frames::{self, FrameError};

const MAGIC: [u8; 8] = *b"CPRSTAT\n";
const ENVELOPE: Envelope = Envelope { magic: MAGIC, version: OLDEST_VERSION };

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
    /// It is too short to have a header.
    #[error("not a saved state: {0} bytes are too short for a header of {header}", header = frames::HEADER)]
    NoHeader(usize),
    /// The whole has a version that this binary does not read.
    #[error("not a saved state: it has format version {found}, this binary reads {known}")]
    StateVersion {
        /// The version it has.
        found: u32,
        /// The versions that are known.
        known: String,
    },
    /// The frames are invalid.
    #[error("not a saved state: {0}")]
    Frames(#[from] FrameError),
    /// Bytes follow the state.
    #[error("not a saved state: {0} bytes follow it")]
    Trailing(usize),
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

    /// Returns the version of a section; `None` if there is no such section.
    pub fn version(&self, name: &str, instance: u32) -> Option<u32> {
        let section = self.sections.iter().find(|s| s.name == name && s.instance == instance);
        section.map(|section| section.version)
    }

    /// Name, instance, version and content of each section.
    #[cfg(test)]
    pub fn contents(&self) -> impl Iterator<Item = (&str, u32, u32, &[u8])> {
        self.sections.iter().map(|s| (s.name.as_str(), s.instance, s.version, s.data.as_slice()))
    }

    /// Encodes the state in this version of the whole.
    pub fn encode(&self, version: u32) -> (Vec<u8>, Fingerprint) {
        const MEMORY: &str = "writing to memory cannot fail and sections have no type CBOR lacks";
        if version == OLDEST_VERSION {
            let mut body = Vec::new();
            ciborium::into_writer(&self.sections, &mut body).expect(MEMORY);
            return ENVELOPE.seal(&body);
        }
        let encoded = |section: &Section| {
            let mut bytes = Vec::new();
            ciborium::into_writer(section, &mut bytes).expect(MEMORY);
            bytes
        };
        let sections: Vec<_> = self.sections.iter().map(encoded).collect();
        let mut bytes = Vec::with_capacity(sections.iter().map(|bytes| bytes.len() + 4).sum());
        let frames = sections.iter().map(Vec::as_slice);
        let fingerprint = frames::write(header(version), frames, &mut bytes);
        (bytes, fingerprint.expect("no section is as long as a frame may be"))
    }

    /// Decodes the bytes of a file.
    pub fn decode(mut bytes: &[u8]) -> Result<(Self, Fingerprint), SectionError> {
        let decoded = Self::read(&mut bytes)?;
        match bytes.len() {
            0 => Ok(decoded),
            more => Err(SectionError::Trailing(more)),
        }
    }

    /// Reads a state from a stream, and nothing behind it.
    pub fn read(from: &mut impl Read) -> Result<(Self, Fingerprint), SectionError> {
        let mut header = Vec::new();
        let read = from.by_ref().take(frames::HEADER as u64).read_to_end(&mut header);
        read.map_err(FrameError::Read)?;
        let header: [u8; frames::HEADER] =
            header.try_into().map_err(|short: Vec<u8>| SectionError::NoHeader(short.len()))?;
        let [magic, version] = [&header[..8], &header[8..]];
        if magic != MAGIC {
            return Err(EnvelopeError::Magic(MAGIC).into());
        }
        let found = u64::from_le_bytes(version.try_into().expect("8 bytes"));
        let known = known_versions();
        let (sections, fingerprint) = match u32::try_from(found) {
            Ok(OLDEST_VERSION) if known.contains(&OLDEST_VERSION) => {
                Self::in_envelope(header, from)?
            }
            Ok(STATE_VERSION) if known.contains(&STATE_VERSION) => Self::in_frames(header, from)?,
            _ => {
                let known = named(&known);
                return Err(SectionError::StateVersion { found: found as u32, known });
            }
        };
        Self::checked(sections).map(|state| (state, fingerprint))
    }

    fn in_envelope(
        header: [u8; frames::HEADER],
        from: &mut impl Read,
    ) -> Result<(Vec<Section>, Fingerprint), SectionError> {
        let mut bytes = header.to_vec();
        ENVELOPE.read_rest(&mut bytes, from).map_err(FrameError::Read)?;
        let (mut body, fingerprint) = ENVELOPE.open(&bytes)?;
        let sections = ciborium::de::from_reader_with_recursion_limit(&mut body, MAX_DEPTH)
            .map_err(|error| SectionError::List(error.to_string()))?;
        match body.len() {
            0 => Ok((sections, fingerprint)),
            more => Err(SectionError::List(format!("{more} bytes follow it"))),
        }
    }

    fn in_frames(
        header: [u8; frames::HEADER],
        from: &mut impl Read,
    ) -> Result<(Vec<Section>, Fingerprint), SectionError> {
        let (frames, fingerprint) = frames::read(header, from, MAX_SECTIONS)?;
        let mut sections = Vec::with_capacity(frames.len());
        for (index, frame) in frames.iter().enumerate() {
            let invalid = |why: String| SectionError::List(format!("section {index}: {why}"));
            let mut bytes = frame.as_slice();
            let section = ciborium::de::from_reader_with_recursion_limit(&mut bytes, MAX_DEPTH);
            sections.push(section.map_err(|error| invalid(error.to_string()))?);
            if !bytes.is_empty() {
                return Err(invalid(format!("{} bytes follow it", bytes.len())));
            }
        }
        Ok((sections, fingerprint))
    }

    #[cfg_attr(not(feature = "failpoints"), expect(unused_mut))]
    fn checked(mut sections: Vec<Section>) -> Result<Self, SectionError> {
        if sections.len() > MAX_SECTIONS {
            return Err(SectionError::List(format!("{} sections are too many", sections.len())));
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
        Ok(Self { sections })
    }
}

fn header(version: u32) -> [u8; frames::HEADER] {
    let mut header = [0; frames::HEADER];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&version.to_le_bytes());
    header
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn state() -> SavedState {
        let mut state = SavedState::default();
        state.put("clock", 0, 1, &42_u64);
        state.put("vcpu", 0, 2, &"zero");
        state.put("vcpu", 1, 2, &"one");
        state
    }

    fn reread(state: &SavedState, version: u32) -> Result<SavedState, SectionError> {
        let (bytes, written) = state.encode(version);
        let (state, read) = SavedState::decode(&bytes)?;
        assert_eq!(read, written);
        Ok(state)
    }

    #[rstest]
    #[case(OLDEST_VERSION)]
    #[case(STATE_VERSION)]
    fn sections_come_back_by_name_and_instance(#[case] version: u32) {
        let mut state = reread(&state(), version).unwrap();
        assert_eq!((state.version("vcpu", 1), state.version("vcpu", 2)), (Some(2), None));
        assert_eq!(state.take::<String>("vcpu", 1, 2).unwrap(), "one");
        assert_eq!(state.take::<u64>("clock", 0, 1).unwrap(), 42);
        assert_eq!(state.take::<String>("vcpu", 0, 2).unwrap(), "zero");
        state.finish().unwrap();
    }

    #[test]
    fn mismatched_sections_are_named() {
        let mut twice = state();
        twice.put("clock", 0, 1, &43_u64);
        let fresh = || reread(&state(), STATE_VERSION).unwrap();
        let errors = [
            fresh().take::<u64>("pit", 0, 1).unwrap_err(),
            fresh().take::<u64>("clock", 0, 2).unwrap_err(),
            fresh().take::<String>("clock", 0, 1).unwrap_err(),
            fresh().finish().unwrap_err(),
            reread(&twice, STATE_VERSION).unwrap_err(),
        ];
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        insta::assert_debug_snapshot!(texts);
    }

    fn framed(frame: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        frames::write(header(STATE_VERSION), [frame], &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn rejects_deep_nesting() {
        let nested = [0x81; 10_000];
        for bytes in [ENVELOPE.seal(&nested).0, framed(&nested)] {
            assert!(matches!(SavedState::decode(&bytes), Err(SectionError::List(_))));
        }
    }

    #[rstest]
    #[case(OLDEST_VERSION)]
    #[case(STATE_VERSION)]
    fn stream_is_read_up_to_the_end_of_the_state(#[case] version: u32) {
        let mut bytes = state().encode(version).0;
        bytes.extend(b"next");
        assert!(SavedState::decode(&bytes).is_err());
        let mut rest = bytes.as_slice();
        SavedState::read(&mut rest).unwrap();
        assert_eq!(rest, b"next");
    }

    #[rstest]
    #[case("not_a_state", b"some other file, long enough".to_vec())]
    #[case("short", b"CPRSTAT\n\x02".to_vec())]
    #[case("newer_version", header(STATE_VERSION + 1).to_vec())]
    #[case("reserved_bits", { let mut other = header(STATE_VERSION); other[12] = 1; other.to_vec() })]
    #[case("empty", header(STATE_VERSION).to_vec())]
    #[case("section", framed(b"\x01"))]
    #[case("trailing", [state().encode(STATE_VERSION).0, vec![0]].concat())]
    #[case("trailing_envelope", [state().encode(OLDEST_VERSION).0, vec![0]].concat())]
    fn damage_is_named(#[case] name: &str, #[case] bytes: Vec<u8>) {
        let error = SavedState::decode(&bytes).unwrap_err();
        insta::assert_snapshot!(format!("state_{name}"), error);
    }

    #[test]
    fn false_length_allocates_nothing() {
        // An array that says it has 2^60 elements.
        let (bytes, _) = ENVELOPE.seal(&[0x9b, 0x10, 0, 0, 0, 0, 0, 0, 0]);
        assert!(matches!(SavedState::decode(&bytes), Err(SectionError::List(_))));
    }
}
