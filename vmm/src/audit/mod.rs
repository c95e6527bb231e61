//! Everything that KVM reports about a VM whose vCPUs are paused, and what only this process can
//! query from the kernel, as named values: tests compare them before and after an update.
//!
//! It shares no code with save and restore, so it shows what those forget: it makes its own ioctls,
//! and reads more than is saved. Source: KVM API, section 4.

mod call;
mod msrs;
mod process;
mod vcpu;
mod vm;
mod xsave;

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::machine::Machine;
use crate::machine::kvm_fds::KvmFds;

/// Environment variable naming the file to which an update writes its audits before and after exec.
const FILE_NAME: &str = "CPR_AUDIT";

/// Values by name.
#[derive(Debug, Default)]
pub struct Values(BTreeMap<String, String>);

impl Values {
    fn note(&mut self, name: impl Into<String>, value: impl std::fmt::Display) {
        self.0.insert(name.into(), value.to_string());
    }

    /// Notes a number, in hexadecimal.
    fn hex(&mut self, name: impl Into<String>, value: impl Into<u64>) {
        self.note(name, format_args!("{:#x}", value.into()));
    }

    /// Notes `bytes` in pieces of 16 bytes, named by their offset.
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

/// Whether an audit must be quick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditDepth {
    /// It may take long: MSRs that no list has are tried one by one.
    None,
    /// The guest is waiting: only MSRs that KVM lists are read.
    Some,
}

/// Reasons why an audit is unavailable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// The VMM waits for an incoming state.
    #[error("there is no VM yet")]
    NoVm,
    /// Memory is short: a failed allocation in an audit would end the VMM.
    #[error("the VMM has less than {} MiB of memory left for the audit", ROOM >> 20)]
    NoRoom,
}

/// Bytes that are enough for all values of a VM with many vCPUs.
const ROOM: usize = 8 << 20;

/// Audits a machine, none of whose vCPUs is in `KVM_RUN`. The value of what cannot be read is the
/// reason.
pub fn read(machine: &Machine, haste: AuditDepth) -> Result<Values, Unavailable> {
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

/// Which side of an update makes the audit.
#[derive(Clone, Copy, Debug)]
pub enum Side {
    /// The old process, after it has saved.
    Old,
    /// The new one, before its first `KVM_RUN`.
    New,
}

/// Writes the audit of one side of an update to a file, if a test has asked for it.
pub fn note(machine: &Machine, side: Side) {
    let Some(file) = std::env::var_os(FILE_NAME) else { return };
    let values = match read(machine, AuditDepth::Some) {
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
