//! Decoding of the port accesses that make `KVM_RUN` return.

use kvm_bindings::{KVM_EXIT_IO_IN, kvm_run};

/// A port access of `count` items of `size` bytes each (more than one: `rep ins`, `rep outs`).
pub struct PortAccess<'a> {
    /// The port.
    pub port: u16,
    /// Bytes of one item: 1, 2 or 4.
    pub size: usize,
    /// True if the guest reads.
    pub is_in: bool,
    /// The bytes of all items.
    pub data: &'a mut [u8],
}

/// Returns the port access that `run` describes. `run` must be the start of a vCPU's mapping, with
/// exit reason `KVM_EXIT_IO`.
pub fn port_access(run: &mut kvm_run) -> PortAccess<'_> {
    // SAFETY: the caller has seen KVM_EXIT_IO, for which KVM fills this member of the union.
    let io = unsafe { run.__bindgen_anon_1.io };
    let bytes = io.count as usize * usize::from(io.size);
    let offset = io.data_offset as usize;
    debug_assert!(offset >= size_of::<kvm_run>(), "the data follows the structure");
    // A pointer derived from `run` may not leave the structure. The mapping comes from the kernel,
    // not from a Rust allocation, so its provenance is exposed.
    let mapping = std::ptr::with_exposed_provenance_mut::<u8>((&raw const *run).addr());
    // SAFETY: KVM puts the data at this offset of the same mapping (KVM API 5, "KVM_EXIT_IO"),
    // after the structure that `run` borrows, and nothing else refers to it as long as that is
    // borrowed.
    let data = unsafe { std::slice::from_raw_parts_mut(mapping.add(offset), bytes) };
    PortAccess {
        port: io.port,
        size: io.size.into(),
        is_in: u32::from(io.direction) == KVM_EXIT_IO_IN,
        data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 4096;

    /// Two pages, as the kernel maps them; Miri checks that the access stays allowed.
    #[repr(C, align(4096))]
    struct Mapping([u8; 2 * PAGE]);

    #[test]
    fn port_access_data_follows_the_structure() {
        let mut mapping = Box::new(Mapping([0; 2 * PAGE]));
        mapping.0[PAGE..PAGE + 4].copy_from_slice(&[1, 2, 3, 4]);
        let start = (&raw mut *mapping).cast::<u8>();
        start.expose_provenance();
        // SAFETY: the box is larger than the structure, aligned as it, and all its bytes are zero.
        let run = unsafe { &mut *start.cast::<kvm_run>() };
        let io = &raw mut run.__bindgen_anon_1.io;
        // SAFETY: a member of the union, all of whose bytes are initialised.
        unsafe {
            (*io).port = 0x3f8;
            (*io).size = 2;
            (*io).count = 2;
            (*io).data_offset = PAGE as u64;
        }
        let access = port_access(run);
        assert_eq!((access.port, access.size, access.is_in), (0x3f8, 2, true));
        assert_eq!(access.data, [1, 2, 3, 4]);
        access.data[0] = 9;
        // SAFETY: the box is still there.
        assert_eq!(unsafe { start.add(PAGE).read() }, 9);
    }
}
