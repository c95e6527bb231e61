//! Tiny guests, each made to notice one kind of damage, built from source by `build.rs` and
//! embedded.

#[path = "../runtime/mailbox.rs"]
pub mod mailbox;

/// A guest, ready to boot.
#[derive(Clone, Copy)]
pub struct GuestImage {
    /// Its name.
    pub name: &'static str,
    /// What it does, in a line.
    pub summary: &'static str,
    /// A static ELF file with a PVH entry note.
    pub elf: &'static [u8],
    /// The same as a firmware image, a multiple of 64 KiB with the reset vector at its end.
    pub bios: &'static [u8],
}

/// All guests, in order of name.
pub static GUESTS: &[GuestImage] = include!(concat!(env!("OUT_DIR"), "/guests.rs"));

/// The guest of that name.
pub fn guest(name: &str) -> Option<&'static GuestImage> {
    GUESTS.iter().find(|guest| guest.name == name)
}
