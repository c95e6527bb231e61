//! Access to I/O ports at CPL3.

use super::cpl0;

/// The first leaf of the processor's name, and what it begins with where QEMU's TCG executes the
/// guest, directly or below KVM.
const NAME: u32 = 0x8000_0002;
const TCG: &[u8; 8] = b"QEMU TCG";

/// Opens the ports to CPL3 where the bitmap in the TSS does not suffice. Every vCPU calls it.
///
/// That is QEMU's TCG: its `helper_check_io` accepts an available TSS only (type 9), but a processor
/// marks the TSS busy (11), and so does KVM when it restores TR. Elsewhere only the bitmap opens the
/// ports, so that a TR or TSS that an update has damaged shows.
pub(super) fn open() {
    let [eax, ebx, ..] = cpl0::cpuid(NAME, 0);
    if [eax.to_le_bytes(), ebx.to_le_bytes()].as_flattened() == TCG {
        cpl0::set_iopl_3();
    }
}
