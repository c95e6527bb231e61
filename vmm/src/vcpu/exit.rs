//! What made `KVM_RUN` come back, as owned data or as a port access with its width.

use kvm_bindings::{KVM_EXIT_IO_IN, kvm_run};

/// A port access of `count` items of `size` bytes each (more than one: `rep ins`, `rep outs`).
pub struct PortAccess<'a> {
    /// The port.
    pub port: u16,
    /// Bytes of one item: 1, 2 or 4.
    pub size: usize,
    /// True where the guest reads.
    pub is_in: bool,
    /// All items.
    pub data: &'a mut [u8],
}

/// The port access that `run` describes; its exit reason must be `KVM_EXIT_IO`.
pub fn port_access(run: &mut kvm_run) -> PortAccess<'_> {
    let base = (&raw mut *run).cast::<u8>();
    // SAFETY: the caller has seen KVM_EXIT_IO, for which KVM fills this member of the union.
    let io = unsafe { run.__bindgen_anon_1.io };
    let bytes = io.count as usize * usize::from(io.size);
    // SAFETY: KVM puts the data at this offset of the same mapping (KVM API 5, "KVM_EXIT_IO"), of
    // which `run` is the start and which is borrowed for as long as the slice.
    let data = unsafe { std::slice::from_raw_parts_mut(base.add(io.data_offset as usize), bytes) };
    PortAccess {
        port: io.port,
        size: io.size.into(),
        is_in: u32::from(io.direction) == KVM_EXIT_IO_IN,
        data,
    }
}
