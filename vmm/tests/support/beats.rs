//! The heartbeats of a guest, read from its RAM through `/proc`.

use std::fs::File;
use std::mem::{offset_of, size_of};
use std::os::unix::fs::FileExt;

use guest_images::mailbox::{CpuMailbox, MAILBOX_GPA, Mailbox};

use super::{process, until};

/// The RAM of a guest that has heartbeats.
pub struct Beats(File);

impl Beats {
    /// Opens the RAM of the VMM's guest.
    pub fn of(pid: u32) -> Self {
        Self(until("the guest's RAM", || {
            let descriptors = process::descriptors(pid);
            let ram = descriptors.iter().find(|(_, (target, _))| target.contains("pc.ram"));
            let (number, _) = ram.ok_or_else(|| format!("{descriptors:?}"))?;
            File::open(format!("/proc/{pid}/fd/{number}")).map_err(|error| error.to_string())
        }))
    }

    /// Returns the file of its RAM.
    pub fn ram(&self) -> &File {
        &self.0
    }

    /// Returns the number of heartbeats of a vCPU.
    pub fn count(&self, cpu: usize) -> u64 {
        let at = offset_of!(Mailbox, cpus) + cpu * size_of::<CpuMailbox>();
        let at = MAILBOX_GPA + (at + offset_of!(CpuMailbox, heartbeat)) as u64;
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, at).expect("RAM has this page");
        u64::from_le_bytes(bytes)
    }

    /// Waits until each of the vCPUs has had more heartbeats.
    pub fn go_on(&self, cpus: usize) {
        for cpu in 0..cpus {
            let before = self.count(cpu);
            until("heartbeats", || match self.count(cpu) {
                now if now > before => Ok(()),
                now => Err(now),
            });
        }
    }
}
