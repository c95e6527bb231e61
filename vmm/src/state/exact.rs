//! KVM's structures in a saved state: each must have exactly the size that this binary knows.
//!
//! Their own `Deserialize` silently pads short input with zeros and truncates long input. Here both
//! are errors. The format is the same: the bytes of the structure.

use serde::de::value::BytesDeserializer;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_bytes::ByteBuf;

/// Writes the structure's own format.
pub fn serialize<T: Serialize, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
    value.serialize(to)
}

/// Reads a structure; a wrong size is an error that names it.
pub fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    Exact::deserialize(from).map(|Exact(value)| value)
}

/// For a structure that may be missing.
pub mod option {
    pub use super::serialize;
    use super::{Deserialize, DeserializeOwned, Deserializer, Exact};

    /// See [`super::deserialize`].
    pub fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<T>, D::Error> {
        Ok(Option::deserialize(from)?.map(|Exact(value)| value))
    }
}

/// For a list of structures.
pub mod list {
    pub use super::serialize;
    use super::{Deserialize, DeserializeOwned, Deserializer, Exact};

    /// See [`super::deserialize`].
    pub fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<T>, D::Error> {
        Ok(Vec::deserialize(from)?.into_iter().map(|Exact(value)| value).collect())
    }
}

struct Exact<T>(T);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Exact<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let bytes = ByteBuf::deserialize(from)?;
        let (found, expected) = (bytes.len(), size_of::<T>());
        if found != expected {
            let name = std::any::type_name::<T>().rsplit("::").next().unwrap_or_default();
            return Err(D::Error::custom(format_args!(
                "{name} has {found} bytes, this binary expects {expected}"
            )));
        }
        T::deserialize(BytesDeserializer::new(&bytes)).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use ciborium::Value;
    use kvm_bindings::{kvm_msr_entry, kvm_regs, kvm_xcrs};

    use super::*;

    #[derive(Debug, Serialize, Deserialize)]
    struct State {
        #[serde(with = "super")]
        regs: kvm_regs,
        #[serde(with = "super::option")]
        xcrs: Option<kvm_xcrs>,
        #[serde(with = "super::list")]
        msrs: Vec<kvm_msr_entry>,
    }

    /// The same without this module.
    #[derive(Serialize)]
    struct Plain {
        regs: kvm_regs,
        xcrs: Option<kvm_xcrs>,
        msrs: Vec<kvm_msr_entry>,
    }

    fn state(xcrs: Option<kvm_xcrs>) -> State {
        let msr = |index| kvm_msr_entry { index, data: 7, ..Default::default() };
        let regs = kvm_regs { rip: 5, ..Default::default() };
        State { regs, xcrs, msrs: vec![msr(1), msr(2)] }
    }

    fn encode(value: &impl Serialize) -> Vec<u8> {
        let mut bytes = Vec::new();
        ciborium::into_writer(value, &mut bytes).unwrap();
        bytes
    }

    /// Decodes a state after changing the length of one byte string.
    fn decode(field: &str, change: fn(&mut Vec<u8>)) -> Result<State, String> {
        let mut value = Value::serialized(&state(Some(kvm_xcrs::default()))).unwrap();
        let fields = value.as_map_mut().unwrap();
        let (_, place) = fields.iter_mut().find(|(key, _)| key.as_text() == Some(field)).unwrap();
        let place = match place {
            Value::Array(entries) => entries.last_mut().unwrap(),
            place => place,
        };
        change(place.as_bytes_mut().unwrap());
        ciborium::from_reader(encode(&value).as_slice()).map_err(|error| error.to_string())
    }

    #[test]
    fn format_is_that_of_the_structures_themselves() {
        for xcrs in [None, Some(kvm_xcrs { nr_xcrs: 1, ..Default::default() })] {
            let State { regs, xcrs, msrs } = state(xcrs);
            let plain = encode(&Plain { regs, xcrs, msrs });
            assert_eq!(encode(&state(xcrs)), plain);
            let read: State = ciborium::from_reader(plain.as_slice()).unwrap();
            assert_eq!((read.regs.rip, read.xcrs, read.msrs.len()), (5, xcrs, 2));
        }
    }

    #[test]
    fn wrong_size_is_named() {
        let shorter = |field| decode(field, |bytes| bytes.truncate(bytes.len() - 1)).unwrap_err();
        let longer = |field| decode(field, |bytes| bytes.push(0)).unwrap_err();
        assert!(shorter("regs").contains("kvm_regs has 143 bytes, this binary expects 144"));
        assert!(longer("xcrs").contains("kvm_xcrs has 393 bytes, this binary expects 392"));
        assert!(shorter("msrs").contains("kvm_msr_entry has 15 bytes, this binary expects 16"));
        assert!(decode("regs", |_| ()).is_ok());
    }
}
