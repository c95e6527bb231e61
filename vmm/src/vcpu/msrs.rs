//! Which MSRs are saved: those that this host's KVM can both get and set.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};
use xxhash_rust::xxh3::xxh3_64;

use super::state_error::StateError;

const MSR_IA32_TSC: u32 = 0x10;
const MSR_IA32_TSC_DEADLINE: u32 = 0x6e0;
/// The MSR that carries the LAPIC's base is part of the sregs, and KVM checks it there.
const MSR_IA32_APICBASE: u32 = 0x1b;
/// Setting one of these makes KVM write the real time into the guest's RAM: a command, not state.
const MSR_KVM_WALL_CLOCK: [u32; 2] = [0x11, 0x4b56_4d00];
const MSR_IA32_MCG_CAP: u32 = 0x179;
const MSR_IA32_MCG_STATUS: u32 = 0x17a;
const MSR_IA32_MCG_CTL: u32 = 0x17b;
/// The first of four MSRs of each bank: `MCi_CTL`, `_STATUS`, `_ADDR`, `_MISC`.
const MSR_IA32_MC0_CTL: u32 = 0x400;
/// Base and mask of 8 variable ranges, the fixed ranges, the default type.
const MTRRS: [std::ops::RangeInclusive<u32>; 5] =
    [0x200..=0x20f, 0x250..=0x250, 0x258..=0x259, 0x268..=0x26f, 0x2ff..=0x2ff];
/// MSRs per call; KVM accepts fewer than 256 (`MAX_IO_MSRS`).
pub(super) const BATCH: usize = 128;

/// Builds the argument of one call, from no more entries than one call accepts.
pub(super) fn batch(vcpu: u8, entries: &[kvm_msr_entry]) -> Result<Msrs, StateError> {
    Msrs::from_entries(entries).map_err(|_| StateError::TooMany {
        vcpu,
        what: "MSRs",
        count: entries.len(),
    })
}

/// Returns the MSRs that this host's KVM can get and set, the TSC first and the deadline last.
pub(super) fn settable(kvm: &Kvm, vcpu: &VcpuFd, tsc_offset: bool) -> Result<Vec<u32>, StateError> {
    let error = |call| move |source| StateError::Ioctl { vcpu: 0, call, source };
    let listed = kvm.get_msr_index_list().map_err(error("KVM_GET_MSR_INDEX_LIST"))?;
    let read = |batch: &mut Msrs| vcpu.get_msrs(batch).map_err(error("KVM_GET_MSRS"));
    let mcg_cap = probe(&entries(&[MSR_IA32_MCG_CAP]), read)?.first().map_or(0, |cap| cap.data);
    let mut indices = listed.as_slice().to_vec();
    indices.extend(unlisted_msrs(mcg_cap).filter(|msr| !listed.as_slice().contains(msr)));
    to_save(&mut indices, tsc_offset);
    let readable = probe(&entries(&indices), read)?;
    let settable = probe(&readable, |batch| vcpu.set_msrs(batch).map_err(error("KVM_SET_MSRS")))?;
    Ok(settable.iter().map(|entry| entry.index).collect())
}

/// Returns a hash of the MSRs that [`settable`] probes. Another binary, or another host, has
/// another hash if it probes others.
pub(super) fn choice(kvm: &Kvm, tsc_offset: bool) -> Option<u64> {
    // The maximum number of banks: the actual number never changes for a guest's vCPU.
    const BANKS: u64 = 32;
    let mut indices = kvm.get_msr_index_list().ok()?.as_slice().to_vec();
    indices.extend(unlisted_msrs(BANKS));
    to_save(&mut indices, tsc_offset);
    indices.sort_unstable();
    indices.dedup();
    let bytes: Vec<u8> = indices.iter().flat_map(|index| index.to_le_bytes()).collect();
    Some(xxh3_64(&bytes))
}

/// Removes MSRs that must not be saved, and puts the rest in order.
pub(super) fn to_save(indices: &mut Vec<u32>, tsc_offset: bool) {
    indices.retain(|msr| is_state(*msr) && !(tsc_offset && *msr == MSR_IA32_TSC));
    indices.sort_by_key(|&msr| match msr {
        MSR_IA32_TSC => 0,
        MSR_IA32_TSC_DEADLINE => 2,
        _ => 1,
    });
}

fn is_state(msr: u32) -> bool {
    msr != MSR_IA32_APICBASE && !MSR_KVM_WALL_CLOCK.contains(&msr)
}

/// MSRs that `KVM_GET_MSR_INDEX_LIST` does not name: machine checks, and MTRRs before Linux 6.3.
/// `mcg_cap` is the value of IA32_MCG_CAP, which has the number of banks in its low byte.
fn unlisted_msrs(mcg_cap: u64) -> impl Iterator<Item = u32> {
    let banks = mcg_cap as u32 & 0xff;
    let machine_check = MSR_IA32_MC0_CTL..MSR_IA32_MC0_CTL + 4 * banks;
    [MSR_IA32_MCG_STATUS, MSR_IA32_MCG_CTL]
        .into_iter()
        .chain(machine_check)
        .chain(MTRRS.into_iter().flatten())
}

/// Builds entries to read.
pub(super) fn entries(indices: &[u32]) -> Vec<kvm_msr_entry> {
    indices.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect()
}

/// Returns those of `entries` that `call` accepts, as it leaves them. Each rejected entry costs one
/// more call.
fn probe(
    entries: &[kvm_msr_entry],
    call: impl Fn(&mut Msrs) -> Result<usize, StateError>,
) -> Result<Vec<kvm_msr_entry>, StateError> {
    let mut kept = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let mut part = batch(0, &rest[..rest.len().min(BATCH)])?;
        let done = call(&mut part)?;
        kept.extend_from_slice(&part.as_slice()[..done]);
        rest = &rest[done..];
        if done < part.as_slice().len() {
            tracing::debug!(msr = format!("{:#x}", rest[0].index), "msr_dropped");
            rest = &rest[1..];
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probing_drops_only_rejected_msrs() {
        let all: Vec<u32> = (0..300).collect();
        let refused = [0, 1, 127, 128, 200, 299];
        let calls = std::cell::Cell::new(0);
        let kept = probe(&entries(&all), |batch| {
            calls.set(calls.get() + 1);
            assert!(batch.as_slice().len() <= BATCH);
            let stop = batch.as_slice().iter().position(|msr| refused.contains(&msr.index));
            Ok(stop.unwrap_or(batch.as_slice().len()))
        });
        let kept: Vec<u32> = kept.unwrap().iter().map(|msr| msr.index).collect();
        assert_eq!(kept, all.into_iter().filter(|msr| !refused.contains(msr)).collect::<Vec<_>>());
        assert!(calls.get() <= refused.len() + 3, "{} calls", calls.get());
    }

    #[test]
    fn wall_clock_msrs_are_not_state() {
        assert!(!is_state(0x11) && !is_state(0x4b56_4d00));
        assert!(is_state(0x4b56_4d01) && is_state(MSR_IA32_TSC_DEADLINE));
    }

    #[test]
    fn machine_check_msrs_and_mtrrs_are_probed() {
        let msrs: Vec<u32> = unlisted_msrs(0x0100_0102).collect();
        assert!((0x400..0x408).all(|msr| msrs.contains(&msr)) && !msrs.contains(&0x408));
        assert!([0x17a, 0x17b, 0x200, 0x20f, 0x250, 0x2ff].iter().all(|msr| msrs.contains(msr)));
    }
}
