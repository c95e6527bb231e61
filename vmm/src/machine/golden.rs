//! Tests that each released format of the saved state is read, or rejected by its versions, and
//! that this binary writes the format that it declares.

use std::fs;
use std::path::Path;

use ciborium::Value;
use serde::de::DeserializeOwned;

use super::state::{
    BOARD, DEVICES, Inventory, MACHINE, PCI, PLATFORM, PlatformState, RestoredState, SECTIONS,
    VCPU, VIRTIO_RNG,
};
use crate::state::golden::{COMMAND, changes, entries, folder, formats, is_readable, own, writes};
use crate::state::{STATE_VERSION, SavedState, SectionError};
use crate::vcpu::VcpuState;

/// What to do if a test here fails.
fn rule() -> String {
    format!(
        "The format of the saved state has changed, but its version has not. Raise the section's \
         version in vmm/src/machine/state.rs, then add golden states: {COMMAND}"
    )
}

fn states(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let states = entries(folder.to_owned()).into_iter();
    let states = states.filter(|path| path.extension().is_some_and(|e| e == "state"));
    let states: Vec<_> =
        states.map(|path| (path.display().to_string(), fs::read(path).unwrap())).collect();
    assert!(!states.is_empty(), "{folder:?} has no states");
    states
}

/// Decodes the whole state, to the last byte.
fn take_apart(bytes: &[u8]) -> Result<(Inventory, RestoredState), SectionError> {
    let (mut state, _) = SavedState::decode(bytes)?;
    let inventory: Inventory = state.take(MACHINE.0, 0, MACHINE.1)?;
    let rest = RestoredState::take(state, &inventory)?;
    Ok((inventory, rest))
}

/// The same state as this binary writes it.
fn written_again((inventory, rest): (Inventory, RestoredState)) -> SavedState {
    let mut state = SavedState::default();
    state.put(MACHINE.0, 0, MACHINE.1, &inventory);
    for (index, vcpu) in (0..).zip(&rest.vcpus) {
        state.put(VCPU.0, index, VCPU.1, vcpu);
    }
    state.put(PLATFORM.0, 0, PLATFORM.1, &rest.platform);
    state.put(DEVICES.0, 0, DEVICES.1, &rest.devices);
    state.put(BOARD.0, 0, BOARD.1, &rest.board);
    if !inventory.devices.is_empty() {
        state.put(PCI.0, 0, PCI.1, &rest.pci.host);
    }
    for (slot, device) in &rest.pci.devices {
        state.put(device.device.section(), (*slot).into(), VIRTIO_RNG.1, device);
    }
    state
}

fn difference(golden: &SavedState, now: &SavedState) -> Option<String> {
    golden.contents().zip(now.contents()).find_map(|(was, is)| {
        let told = changes(was.3, is.3)?;
        Some(format!("section {}.{}, version {}:\n{told}", was.0, was.1, was.2))
    })
}

#[test]
fn golden_states_are_read_or_refused_by_version() {
    for format in formats("state") {
        let readable = is_readable(&format, &SECTIONS);
        for (path, bytes) in states(&format) {
            match take_apart(&bytes) {
                Ok(_) => assert!(readable, "{path} was read, but is of another format"),
                Err(SectionError::Version { .. }) if !readable => {}
                Err(error) => panic!("{path}: {error}\n{}", rule()),
            }
        }
    }
}

#[test]
fn golden_states_of_this_format_are_rewritten_unchanged() {
    let own = folder().join(own(&SECTIONS));
    if !own.exists() {
        assert!(writes(), "{own:?} is missing: add golden states of this format: {COMMAND}");
        return;
    }
    for (path, bytes) in states(&own) {
        let (golden, _) = SavedState::decode(&bytes).unwrap();
        let now = match take_apart(&bytes) {
            Ok(parts) => written_again(parts),
            Err(error) => panic!("{path}: {error}\n{}", rule()),
        };
        if let Some(told) = difference(&golden, &now) {
            panic!("{path}: {told}\n{}", rule());
        }
        assert_eq!(
            now.encode(STATE_VERSION).0,
            bytes,
            "{path}: its envelope or list of sections has changed"
        );
    }
}

/// Calls `act` with every byte string in `value`, in order, and its path.
fn each_bytes(value: &mut Value, path: &str, act: &mut dyn FnMut(&str, &mut Vec<u8>)) {
    match value {
        Value::Bytes(bytes) => act(path, bytes),
        Value::Array(elements) => {
            elements.iter_mut().for_each(|element| each_bytes(element, path, act));
        }
        Value::Map(fields) => fields.iter_mut().for_each(|(key, field)| {
            each_bytes(field, key.as_text().unwrap_or_default(), act);
        }),
        _ => {}
    }
}

/// Decodes a section whose byte string number `at` is a byte longer or shorter. Returns its path
/// and the result; `None` if there are fewer.
fn with_other_size<T: DeserializeOwned>(
    section: &[u8],
    at: usize,
    longer: bool,
) -> Option<(String, Result<(), String>)> {
    let mut value: Value = ciborium::from_reader(section).unwrap();
    let (mut seen, mut changed) = (0, None);
    each_bytes(&mut value, "", &mut |path, bytes| {
        if seen == at {
            bytes.resize(if longer { bytes.len() + 1 } else { bytes.len() - 1 }, 0);
            changed = Some(path.to_owned());
        }
        seen += 1;
    });
    let mut bytes = Vec::new();
    ciborium::into_writer(&value, &mut bytes).unwrap();
    let result = ciborium::from_reader::<T, _>(bytes.as_slice());
    changed.map(|path| (path, result.map(drop).map_err(|error| error.to_string())))
}

#[test]
fn rejects_kvm_structures_of_the_wrong_size_by_name() {
    let (_, bytes) = states(&folder().join(own(&SECTIONS))).remove(0);
    let (golden, _) = SavedState::decode(&bytes).unwrap();
    for longer in [false, true] {
        for (name, .., section) in golden.contents() {
            let changed = |at| match name {
                "vcpu" => with_other_size::<VcpuState>(section, at, longer),
                "platform" => with_other_size::<PlatformState>(section, at, longer),
                _ => None,
            };
            let mut seen = 0;
            while let Some((path, result)) = changed(seen) {
                seen += 1;
                // Its size differs between hosts: it is compared when it is restored.
                if path != "xsave" {
                    let error = result.expect_err(&path);
                    assert!(
                        error.contains("kvm_") && error.contains(" bytes, "),
                        "{path}: {error}"
                    );
                }
            }
            assert_eq!(seen > 0, matches!(name, "vcpu" | "platform"), "{name}");
        }
    }
}
