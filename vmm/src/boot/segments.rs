//! Segment registers for an entry without a firmware: flat segments, and a task for KVM.

use kvm_bindings::{kvm_segment, kvm_sregs};

pub(super) const CR0_PE: u64 = 1;
pub(super) const CR0_ET: u64 = 1 << 4;

/// Sets the segment registers: CS is `code` with this `selector`, the others are flat data
/// segments. The task register gets a busy TSS, which VMX requires.
pub(super) fn flat(code_selector: u16, data_selector: u16, reset: &kvm_sregs) -> kvm_sregs {
    let flat = |selector, type_| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    };
    // SDM vol. 3, 3.4.5.1: 0xb is execute/read accessed, 0x3 read/write accessed.
    let (code, data) = (flat(code_selector, 0xb), flat(data_selector, 0x3));
    // SDM vol. 3, 8.2.2: a busy 32-bit TSS, of the 104 bytes it has at least. (In long mode the
    // same type is a 64-bit TSS.)
    let selector = data_selector + 8;
    let tss = kvm_segment { limit: 0x67, selector, type_: 0xb, s: 0, db: 0, g: 0, ..data };
    kvm_sregs { cs: code, ds: data, es: data, fs: data, gs: data, ss: data, tr: tss, ..*reset }
}
