//! Access to I/O ports at CPL3.

use super::cpl0;
use super::options::Ports;

/// Opens the ports to CPL3 as the command line says. Every vCPU calls it.
///
/// The bitmap in the TSS opens them already, but not below QEMU's TCG: its `helper_check_io` accepts
/// an available TSS only (type 9), while a processor marks the TSS busy (11), and so does KVM when it
/// restores TR. Elsewhere only the bitmap opens them, so that a TR or TSS that an update has damaged
/// shows.
pub(super) fn open(ports: Ports) {
    if ports == Ports::Iopl {
        cpl0::set_iopl_3();
    }
}
