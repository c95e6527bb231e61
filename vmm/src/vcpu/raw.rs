//! Reading a vCPU's state with system calls only, into memory allocated in advance, to continue the
//! guest after the thread that ran the vCPU has died at any point.
//!
//! It reads what [`Access::save`](super::access::Access::save) reads: both walk
//! [`SAVE`](super::order::SAVE), and neither compiles if an item is missing.

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::time::Duration;

use kvm_bindings::{
    KVM_EXIT_IO, KVM_EXIT_IO_OUT, KVM_EXIT_MMIO, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO,
    kvm_cpuid_entry2, kvm_debugregs, kvm_device_attr, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_sregs, kvm_sregs2, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use nix::errno::Errno;
use nix::{request_code_none, request_code_read, request_code_readwrite, request_code_write};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::access::StateCapabilities;
use super::order::{self, Item};
use super::shared::VcpuShared;
use super::state::{Sregs2Tail, VcpuState};
use super::{due_timer, lapic_timer, msrs, settle};
use crate::sys;

mod paused;

const KVM_RUN: u64 = request_code_none!(KVMIO, 0x80);
const KVM_GET_REGS: u64 = request_code_read!(KVMIO, 0x81, size_of::<kvm_regs>());
const KVM_GET_SREGS: u64 = request_code_read!(KVMIO, 0x83, size_of::<kvm_sregs>());
const KVM_GET_MSRS: u64 = request_code_readwrite!(KVMIO, 0x88, MSRS_HEADER);
const KVM_GET_LAPIC: u64 = request_code_read!(KVMIO, 0x8e, size_of::<kvm_lapic_state>());
const KVM_GET_MP_STATE: u64 = request_code_read!(KVMIO, 0x98, size_of::<kvm_mp_state>());
const KVM_GET_VCPU_EVENTS: u64 = request_code_read!(KVMIO, 0x9f, size_of::<kvm_vcpu_events>());
const KVM_GET_DEBUGREGS: u64 = request_code_read!(KVMIO, 0xa1, size_of::<kvm_debugregs>());
const KVM_GET_XSAVE: u64 = request_code_read!(KVMIO, 0xa4, size_of::<kvm_xsave>());
const KVM_GET_XCRS: u64 = request_code_read!(KVMIO, 0xa6, size_of::<kvm_xcrs>());
const KVM_GET_SREGS2: u64 = request_code_read!(KVMIO, 0xcc, size_of::<kvm_sregs2>());
const KVM_GET_XSAVE2: u64 = request_code_read!(KVMIO, 0xcf, size_of::<kvm_xsave>());
const KVM_GET_DEVICE_ATTR: u64 = request_code_write!(KVMIO, 0xe2, size_of::<kvm_device_attr>());

/// Bytes of `kvm_msrs` before its entries.
const MSRS_HEADER: usize = 8;
/// Maximum number of exits of one access: one per fragment of 8 bytes, 64 bytes at most.
const MOST_FRAGMENTS: usize = 16;

/// A guest write that no device has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct LostWrite {
    /// Port or guest-physical address.
    pub address: u64,
    /// The bytes.
    pub data: [u8; 8],
    /// Number of valid bytes.
    pub length: u32,
    /// 1 for a port, 0 for MMIO.
    pub is_port: u32,
}

/// The kinds of records of a salvaged vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// An item of its state.
    Item(Item),
    /// A [`LostWrite`].
    LostWrite,
    /// The event that stopped it ([`VcpuShared::event`]).
    Event,
}

/// A system call failed during a salvage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
// Formatted without allocating, unlike `io::Error`'s.
#[error("{call}: {} (errno {})", .errno.desc(), *.errno as i32)]
pub struct SalvageError {
    /// The call.
    pub call: &'static str,
    /// The underlying error.
    pub errno: Errno,
}

impl SalvageError {
    /// Returns a constructor for `map_err`.
    pub fn of(call: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self { call, errno }
    }
}

/// Receives the records. Like everything here, it may only make system calls.
pub type Sink<'a> = &'a mut dyn FnMut(Record, &[u8]) -> Result<(), Errno>;

#[derive(Default)]
struct Buffers {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    sregs2: kvm_sregs2,
    xcrs: kvm_xcrs,
    /// In words, for the alignment.
    xsave: Box<[u64]>,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    /// One `kvm_msrs` per batch.
    msrs: Vec<Box<[u64]>>,
    tsc_offset: u64,
    events: kvm_vcpu_events,
}

/// A vCPU that can be read without its thread.
pub struct RawVcpu {
    shared: Arc<VcpuShared>,
    capabilities: Arc<StateCapabilities>,
    /// The CPUID, which does not change once the vCPU has run.
    cpuid: Vec<kvm_cpuid_entry2>,
    buffers: UnsafeCell<Buffers>,
}

// SAFETY: the buffers are used by `save` only, which is called once, by one thread.
unsafe impl Sync for RawVcpu {}

impl RawVcpu {
    /// Allocates everything in advance.
    pub fn new(
        shared: Arc<VcpuShared>,
        capabilities: Arc<StateCapabilities>,
        cpuid: Vec<kvm_cpuid_entry2>,
    ) -> Self {
        let entries = msrs::entries(capabilities.msrs.now());
        let batch = |part: &[kvm_msr_entry]| {
            let mut words = vec![part.len() as u64];
            words.extend(part.iter().flat_map(|entry| [u64::from(entry.index), 0]));
            words.into_boxed_slice()
        };
        let buffers = Buffers {
            xsave: vec![0; capabilities.xsave_bytes().div_ceil(size_of::<u64>())].into(),
            msrs: entries.chunks(msrs::BATCH).map(batch).collect(),
            ..Buffers::default()
        };
        Self { shared, capabilities, cpuid, buffers: UnsafeCell::new(buffers) }
    }

    /// The state shared with the vCPU's thread.
    pub fn shared(&self) -> &VcpuShared {
        &self.shared
    }

    /// Brings a vCPU that stopped anywhere to a point where its state can be read, and passes all
    /// of it to `sink`.
    ///
    /// The access of the last exit is completed if the devices have handled it. A write that they
    /// have not handled is completed too, and passed on as a [`LostWrite`]. A read that they have
    /// not handled is left: RIP still points to it.
    ///
    /// # Safety
    /// Nothing else runs or reads the vCPU, all signals are blocked on this thread, and the calling
    /// process has the address space that the VM was created in.
    pub unsafe fn save(&self, sink: Sink<'_>) -> Result<(), SalvageError> {
        // SAFETY: the caller's promise.
        unsafe {
            self.finish_access(sink)?;
            self.read(sink)?;
        }
        let event = self.shared.event();
        if event[0] != 0 {
            sink(Record::Event, event.as_bytes()).map_err(SalvageError::of("write"))?;
        }
        Ok(())
    }

    unsafe fn finish_access(&self, sink: Sink<'_>) -> Result<(), SalvageError> {
        let run = self.shared.run();
        let mut done = self.shared.access.items_done();
        for _ in 0..MOST_FRAGMENTS {
            // SAFETY: the page is mapped as long as the VM is; nothing else uses it now. The
            // union's member is the one that the exit reason says.
            unsafe {
                match (*run).exit_reason {
                    KVM_EXIT_IO => {
                        let io = (*run).__bindgen_anon_1.io;
                        let is_out = u32::from(io.direction) == KVM_EXIT_IO_OUT;
                        if !is_out && done < io.count {
                            return Ok(());
                        }
                        let data = run.cast::<u8>().add(io.data_offset as usize);
                        let size = usize::from(io.size).clamp(1, 8);
                        for item in done..if is_out { io.count } else { done } {
                            let bytes =
                                std::slice::from_raw_parts(data.add(item as usize * size), size);
                            let write = LostWrite::new(io.port.into(), bytes, true);
                            sink(Record::LostWrite, write.as_bytes())
                                .map_err(SalvageError::of("write"))?;
                        }
                    }
                    KVM_EXIT_MMIO if done == 0 => {
                        let mmio = (*run).__bindgen_anon_1.mmio;
                        if mmio.is_write == 0 {
                            return Ok(());
                        }
                        let bytes = &mmio.data[..(mmio.len as usize).min(8)];
                        let write = LostWrite::new(mmio.phys_addr, bytes, false);
                        sink(Record::LostWrite, write.as_bytes())
                            .map_err(SalvageError::of("write"))?;
                    }
                    _ => {}
                }
                (*run).immediate_exit = 1;
                match sys::ioctl(self.shared.fd(), KVM_RUN, 0) {
                    Err(Errno::EINTR | Errno::EAGAIN) => return Ok(()),
                    Err(errno) => return Err(SalvageError { call: "KVM_RUN", errno }),
                    // Another fragment of the same access.
                    Ok(_) => done = 0,
                }
            }
        }
        Err(SalvageError { call: "KVM_RUN", errno: Errno::EPROTO })
    }

    /// Reads everything, as [`settle::save`] does.
    unsafe fn read(&self, sink: Sink<'_>) -> Result<(), SalvageError> {
        // SAFETY: the caller's promise; nothing else uses the buffers.
        let buffers = unsafe { &mut *self.buffers.get() };
        for tries in 1..=settle::TRIES {
            let began_ns = sys::monotonic_ns();
            // SAFETY: as above.
            unsafe { self.get(Item::Lapic, buffers) }?;
            let before = buffers.lapic;
            if lapic_timer::may_be_due(&before) {
                // SAFETY: as above.
                due_timer::deliver(&mut unsafe { paused::RawPaused::new(self, buffers) })?;
            }
            let mut there = [false; order::SAVE.len()];
            for (there, item) in there.iter_mut().zip(order::SAVE) {
                // SAFETY: as above.
                *there = unsafe { self.get(item, buffers) }?;
            }
            let later = Duration::from_nanos(sys::monotonic_ns().saturating_sub(began_ns));
            if lapic_timer::is_settled(&before, &buffers.lapic, later) || tries == settle::TRIES {
                lapic_timer::to_save(&mut buffers.lapic);
                let there = there.into_iter().zip(order::SAVE).filter(|(there, _)| *there);
                return there
                    .map(|(_, item)| item)
                    .try_for_each(|item| self.emit(item, buffers, sink))
                    .map_err(SalvageError::of("write"));
            }
        }
        Ok(())
    }

    /// Fills the item's buffer; returns false if this host's KVM lacks the item.
    unsafe fn get(&self, item: Item, buffers: &mut Buffers) -> Result<bool, SalvageError> {
        let fd = self.shared.fd();
        let has = &self.capabilities;
        let ioctl = |call, request, argument: usize| {
            // SAFETY: each request below is given the structure that it fills.
            let result = unsafe { sys::ioctl(fd, request, argument) };
            result.map_err(SalvageError::of(call))
        };
        fn at<T: ?Sized>(buffer: &mut T) -> usize {
            (&raw mut *buffer).cast::<u8>() as usize
        }
        match item {
            Item::MpState => {
                ioctl("KVM_GET_MP_STATE", KVM_GET_MP_STATE, at(&mut buffers.mp_state))?;
            }
            Item::Regs => drop(ioctl("KVM_GET_REGS", KVM_GET_REGS, at(&mut buffers.regs))?),
            Item::Sregs => {
                ioctl("KVM_GET_SREGS", KVM_GET_SREGS, at(&mut buffers.sregs))?;
                if has.sregs2 {
                    ioctl("KVM_GET_SREGS2", KVM_GET_SREGS2, at(&mut buffers.sregs2))?;
                }
            }
            Item::Xcrs => match ioctl("KVM_GET_XCRS", KVM_GET_XCRS, at(&mut buffers.xcrs)) {
                Err(SalvageError { errno: Errno::EINVAL, .. }) => return Ok(false),
                result => drop(result?),
            },
            Item::Xsave => {
                let request = if has.xsave_extra == 0 { KVM_GET_XSAVE } else { KVM_GET_XSAVE2 };
                ioctl("KVM_GET_XSAVE2", request, at(&mut *buffers.xsave))?;
            }
            Item::DebugRegs => {
                ioctl("KVM_GET_DEBUGREGS", KVM_GET_DEBUGREGS, at(&mut buffers.debug_regs))?;
            }
            Item::Lapic => drop(ioctl("KVM_GET_LAPIC", KVM_GET_LAPIC, at(&mut buffers.lapic))?),
            Item::Msrs => {
                for batch in &mut buffers.msrs {
                    let wanted = batch[0] as usize;
                    if ioctl("KVM_GET_MSRS", KVM_GET_MSRS, at(&mut **batch))? != wanted {
                        return Err(SalvageError { call: "KVM_GET_MSRS", errno: Errno::EIO });
                    }
                }
            }
            Item::TscOffset if !has.tsc_offset => return Ok(false),
            Item::TscOffset => {
                let attribute = kvm_device_attr {
                    group: KVM_VCPU_TSC_CTRL,
                    attr: KVM_VCPU_TSC_OFFSET.into(),
                    addr: at(&mut buffers.tsc_offset) as u64,
                    flags: 0,
                };
                let argument = (&raw const attribute) as usize;
                ioctl("KVM_GET_DEVICE_ATTR", KVM_GET_DEVICE_ATTR, argument)?;
            }
            Item::Events => {
                ioctl("KVM_GET_VCPU_EVENTS", KVM_GET_VCPU_EVENTS, at(&mut buffers.events))?;
            }
            Item::Cpuid => {}
        }
        Ok(true)
    }

    fn emit(&self, item: Item, buffers: &Buffers, sink: Sink<'_>) -> Result<(), Errno> {
        let mut put = |bytes: &[u8]| sink(Record::Item(item), bytes);
        match item {
            Item::MpState => put(buffers.mp_state.as_bytes()),
            Item::Regs => put(buffers.regs.as_bytes()),
            Item::Sregs => {
                put(buffers.sregs.as_bytes())?;
                let [a, b, c, d] = buffers.sregs2.pdptrs;
                match self.capabilities.sregs2 {
                    true => put([buffers.sregs2.flags, a, b, c, d].as_bytes()),
                    false => Ok(()),
                }
            }
            Item::Xcrs => put(buffers.xcrs.as_bytes()),
            Item::Xsave => put(&buffers.xsave.as_bytes()[..self.capabilities.xsave_bytes()]),
            Item::DebugRegs => put(buffers.debug_regs.as_bytes()),
            Item::Lapic => put(buffers.lapic.as_bytes()),
            Item::Msrs => {
                buffers.msrs.iter().try_for_each(|batch| put(&batch.as_bytes()[MSRS_HEADER..]))
            }
            Item::TscOffset => put(buffers.tsc_offset.as_bytes()),
            Item::Events => put(buffers.events.as_bytes()),
            Item::Cpuid => self.cpuid.iter().try_for_each(|entry| put(entry.as_bytes())),
        }
    }
}

impl LostWrite {
    fn new(address: u64, bytes: &[u8], is_port: bool) -> Self {
        let mut data = [0; 8];
        data.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        Self { address, data, length: bytes.len() as u32, is_port: is_port.into() }
    }

    /// The valid bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.data[..(self.length as usize).min(self.data.len())]
    }
}

/// A record has the wrong size for its item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} has the wrong size of {1} bytes")]
pub struct RecordSize(Item, usize);

impl VcpuState {
    /// Creates an empty state to [`add`](Self::add) records to.
    pub fn of_records() -> Self {
        Self::empty()
    }

    /// Adds a record that [`RawVcpu::save`] passed to its sink.
    pub fn add(&mut self, item: Item, bytes: &[u8]) -> Result<(), RecordSize> {
        let size = || RecordSize(item, bytes.len());
        fn read<T: FromBytes>(bytes: &[u8]) -> Option<T> {
            T::read_from_bytes(bytes).ok()
        }
        match item {
            Item::MpState => self.mp_state = read(bytes).ok_or_else(size)?,
            Item::Regs => self.regs = read(bytes).ok_or_else(size)?,
            Item::Sregs => match read(bytes) {
                Some(sregs) => self.sregs = sregs,
                None => {
                    let [flags, pdptrs @ ..] = read::<[u64; 5]>(bytes).ok_or_else(size)?;
                    self.sregs2 = Some(Sregs2Tail { flags, pdptrs });
                }
            },
            Item::Xcrs => self.xcrs = Some(read(bytes).ok_or_else(size)?),
            Item::Xsave => self.xsave = bytes.to_vec(),
            Item::DebugRegs => self.debug_regs = read(bytes).ok_or_else(size)?,
            Item::Lapic => self.lapic = read(bytes).ok_or_else(size)?,
            Item::Msrs => {
                for entry in bytes.chunks(size_of::<kvm_msr_entry>()) {
                    self.msrs.push(read(entry).ok_or_else(size)?);
                }
            }
            Item::TscOffset => self.tsc_offset = Some(read(bytes).ok_or_else(size)?),
            Item::Events => self.events = read(bytes).ok_or_else(size)?,
            Item::Cpuid => self.cpuid.push(read(bytes).ok_or_else(size)?),
        }
        Ok(())
    }
}
