//! Everything that KVM can tell of a VM whose vCPUs stand still, and what nobody but this process can
//! ask the kernel for, as named values: for tests, which compare them before and after an update.
//!
//! It shares nothing with save and restore, so what those forget is seen here: it makes its own
//! ioctls, and asks for more than anybody saves. Source: KVM API, section 4.

mod call;
mod msrs;
mod process;
mod vcpu;
mod vm;

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::machine::Machine;
use crate::machine::kvm_fds::KvmFds;

/// Names the file in which an update notes what it has found before and after exec.
const FILE_NAME: &str = "CPR_AUDIT";

/// Values by name.
#[derive(Debug, Default)]
pub struct Values(BTreeMap<String, String>);

impl Values {
    fn note(&mut self, name: impl Into<String>, value: impl std::fmt::Display) {
        self.0.insert(name.into(), value.to_string());
    }

    /// A number, in hexadecimal.
    fn hex(&mut self, name: impl Into<String>, value: impl Into<u64>) {
        self.note(name, format_args!("{:#x}", value.into()));
    }

    /// What `bytes` has, in pieces of 16 bytes by their offset.
    fn bytes(&mut self, name: &str, bytes: &[u8]) {
        for (index, piece) in bytes.chunks(16).enumerate() {
            let text: String = piece.iter().rev().map(|byte| format!("{byte:02x}")).collect();
            self.note(format!("{name}.{:#05x}", index * 16), text);
        }
    }
}

impl IntoIterator for Values {
    type Item = (String, String);
    type IntoIter = std::collections::btree_map::IntoIter<String, String>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// How long it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Haste {
    /// As long as it takes: MSRs that no list has are tried one by one.
    None,
    /// The guest waits: only MSRs that KVM lists.
    Some,
}

/// Why there is nothing to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// The VMM waits for a state to come in.
    #[error("there is no VM yet")]
    NoVm,
    /// An audit may not end the VMM that it looks at, as an allocation that fails would.
    #[error("the VMM has less than {} MiB of memory left for it", ROOM >> 20)]
    NoRoom,
}

/// Bytes that suffice for all values of a VM with many vCPUs.
const ROOM: usize = 8 << 20;

/// Reads all of a machine, none of whose vCPUs is in `KVM_RUN`. What cannot be read has the reason
/// for its value.
pub fn read(machine: &Machine, haste: Haste) -> Result<Values, Unavailable> {
    let KvmFds { kvm, vm, vcpus } = machine.kvm_fds().ok_or(Unavailable::NoVm)?;
    Vec::<u8>::new().try_reserve_exact(ROOM).map_err(|_| Unavailable::NoRoom)?;
    let mut values = Values::default();
    process::read(&mut values);
    vm::read(vm, &mut values);
    let msrs = msrs::to_ask_for(kvm, haste);
    for (index, vcpu) in vcpus.into_iter().enumerate() {
        vcpu::read(vcpu, &format!("vcpu{index}"), &msrs, &mut values);
    }
    Ok(values)
}

/// Which half of an update looks.
#[derive(Clone, Copy, Debug)]
pub enum Side {
    /// The old process, when it has saved.
    Old,
    /// The new one, before its first `KVM_RUN`.
    New,
}

/// Notes what there is to read on one side of an update, if a test has asked for it.
pub fn note(machine: &Machine, side: Side) {
    let Some(file) = std::env::var_os(FILE_NAME) else { return };
    let values = match read(machine, Haste::Some) {
        Ok(values) => values,
        Err(reason) => return tracing::warn!(%reason, "audit_not_taken"),
    };
    let path = PathBuf::from(file).with_extension(match side {
        Side::Old => "old",
        Side::New => "new",
    });
    let text = serde_json::to_string(&values.0).expect("it is a map of strings");
    if let Err(error) = std::fs::write(&path, text) {
        tracing::warn!(?path, %error, "audit_not_written");
    }
}
