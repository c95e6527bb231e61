//! Tiny guests, each made to detect one kind of damage. `build.rs` builds them from source and
//! embeds them.

#[path = "../runtime/mailbox.rs"]
pub mod mailbox;

/// A guest, ready to boot.
#[derive(Clone, Copy)]
pub struct GuestImage {
    /// The guest's name.
    pub name: &'static str,
    /// What the guest does, in one line.
    pub summary: &'static str,
    /// A static ELF file with a PVH entry note.
    pub elf: &'static [u8],
    /// The same guest as a firmware image, a multiple of 64 KiB with the reset vector at its end.
    pub bios: &'static [u8],
}

/// All guests but [`LINUX`], sorted by name.
pub static GUESTS: &[GuestImage] = include!(concat!(env!("OUT_DIR"), "/guests.rs"));

/// The name of the guest that is a Linux kernel, which the host provides, with [`INITRAMFS`].
pub const LINUX: &str = "linux";

/// What that guest does, in one line.
pub const LINUX_SUMMARY: &str =
    "Runs Linux and checks its clocks, timers, memory, FPU registers, wakeups and log.";

/// The initramfs of a Linux guest: a cpio archive with the agent as `/init`.
pub static INITRAMFS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/linux.cpio"));

/// The names of all guests.
pub fn names() -> Vec<&'static str> {
    GUESTS.iter().map(|guest| guest.name).chain([LINUX]).collect()
}

/// The guest with this name, if there is one and it has an image.
pub fn guest(name: &str) -> Option<&'static GuestImage> {
    GUESTS.iter().find(|guest| guest.name == name)
}
