//! Sets soft resource limits of the running VMM from outside.

use std::ptr;

use nix::errno::Errno;

use crate::observe::fds::FdTable;
use crate::observe::observation::NotAudited;
use crate::observe::{process, process_facts};
use crate::process::environment::{EnvironmentError, RlimitError};
use crate::run::failure::StepError;
use crate::run::session::Session;
use crate::scenario::{Amount, Limit};

/// A limit before it was changed.
#[derive(Clone, Copy)]
pub struct Saved {
    resource: Resource,
    limit: libc::rlimit64,
}

/// A resource, and the kernel's name for its limit.
#[derive(Clone, Copy)]
struct Resource {
    number: libc::__rlimit_resource_t,
    name: &'static str,
}

impl Session<'_> {
    /// Sets a limit, or restores all.
    pub(super) fn limit(&mut self, limit: Limit) -> Result<(), StepError> {
        let (number, name, amount) = match limit {
            Limit::Restore => {
                while let Some(Saved { resource, limit }) = self.limits.pop() {
                    self.set_limit(resource, limit)?;
                }
                return Ok(());
            }
            Limit::Nofile(amount) => (libc::RLIMIT_NOFILE, "Max open files", amount),
            Limit::As(amount) => (libc::RLIMIT_AS, "Max address space", amount),
            Limit::Nproc(amount) => (libc::RLIMIT_NPROC, "Max processes", amount),
            Limit::Fsize(amount) => (libc::RLIMIT_FSIZE, "Max file size", amount),
        };
        let resource = Resource { number, name };
        let before = prlimit(self.vm.pid(), resource, None)?;
        let wanted = self.wanted(limit, amount)?;
        self.limits.push(Saved { resource, limit: before });
        let rlim_cur = wanted.min(before.rlim_max);
        self.set_limit(resource, libc::rlimit64 { rlim_cur, ..before })
    }

    /// Returns why the VMM cannot be audited now, if so: an audit reads thousands of values from
    /// KVM.
    pub(super) fn not_audited(&self) -> Option<NotAudited> {
        if self.start_pends {
            return Some(NotAudited::StartPending);
        }
        let limited = self.limits.iter().any(|saved| saved.resource.number == libc::RLIMIT_AS);
        limited.then_some(NotAudited::LittleAddressSpace)
    }

    /// Sets the memory limit of the VMM's own cgroup, if it has one.
    pub(super) fn limit_memory(&mut self) -> Result<(), EnvironmentError> {
        if let (Some(cgroup), Some(amount)) = (&self.vm.cgroup, self.case.vm.memory_limit) {
            let limit = cgroup.limit(amount)?;
            self.evidence.timeline.say("harness", format!("memory cgroup: {limit} bytes"));
        }
        Ok(())
    }

    /// Returns the limit that leaves the VMM what it uses now plus `amount`.
    fn wanted(&mut self, limit: Limit, amount: Amount) -> Result<u64, StepError> {
        Ok(match (limit, amount) {
            (Limit::Nofile(_), Amount::Above(more)) => lowest_free(&self.observe()?.fds, more),
            (Limit::As(_), Amount::Above(_)) => {
                let used = process::address_space(self.vm.pid());
                amount.of(used.map_err(|e| StepError::Process(e.to_string()))?)
            }
            _ => amount.of(0),
        })
    }

    fn set_limit(&mut self, resource: Resource, new: libc::rlimit64) -> Result<(), StepError> {
        prlimit(self.vm.pid(), resource, Some(new))?;
        self.evidence.timeline.say("harness", format!("{}: {}", resource.name, new.rlim_cur));
        if let Some(seen) = &mut self.seen {
            let value = match new.rlim_cur {
                libc::RLIM64_INFINITY => "unlimited".to_owned(),
                value => value.to_string(),
            };
            seen.facts.insert(process_facts::soft_limit(resource.name), value);
        }
        Ok(())
    }
}

/// Sets a `new` limit of process `pid`, if given, and returns the old one. If the process is gone,
/// that is a finding, not an error of the environment.
fn prlimit(
    pid: i32,
    resource: Resource,
    new: Option<libc::rlimit64>,
) -> Result<libc::rlimit64, StepError> {
    let mut old = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let new = new.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: both pointers point to live limits, or are null, which the call allows.
    let done = unsafe { libc::prlimit64(pid, resource.number, new, &raw mut old) };
    match Errno::result(done) {
        Ok(_) => Ok(old),
        Err(Errno::ESRCH) => Err(StepError::Process(format!(
            "cannot set the limit `{}` of the VMM: process {pid} is gone",
            resource.name
        ))),
        Err(source) => {
            Err(EnvironmentError::from(RlimitError { name: resource.name, source }).into())
        }
    }
}

/// Returns the limit below which `more` descriptor numbers are free, counting gaps.
fn lowest_free(fds: &FdTable, more: u64) -> u64 {
    let mut free = (0..).filter(|number| !fds.0.contains_key(number));
    free.nth(more as usize).map_or(0, |number| number as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[test]
    fn limit_of_exited_vmm_is_a_finding() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let resource = Resource { number: libc::RLIMIT_NOFILE, name: "Max open files" };
        let error = prlimit(child.id() as i32, resource, None).err().unwrap();
        let findings = error.findings().expect("a finding, not an error of the environment");
        assert_eq!(findings[0].check, "step");
        assert!(findings[0].message.ends_with("is gone"), "{}", findings[0].message);
    }

    #[rstest]
    #[case(0, 2)]
    #[case(1, 4)]
    #[case(2, 5)]
    fn lowest_free_counts_gaps(#[case] more: u64, #[case] limit: u64) {
        let open = FdTable::read(std::process::id() as i32).unwrap().0[&0].clone();
        let fds = FdTable([0, 1, 3, 9].map(|number| (number, open.clone())).into());
        assert_eq!(lowest_free(&fds, more), limit);
    }
}
