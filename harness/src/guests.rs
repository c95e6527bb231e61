//! The guests this binary carries.

/// A guest as the harness needs it.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// Its name.
    pub name: &'static str,
    /// What it proves, in one line.
    pub summary: &'static str,
    /// Its ELF image.
    pub elf: &'static [u8],
}

/// All of them. Stand-ins until `guest-images` builds them; the mock boots anything.
pub const ALL: &[Guest] = &[
    Guest { name: "heartbeat", summary: "every vCPU counts", elf: b"" },
    Guest { name: "pattern", summary: "fills its RAM and sweeps it", elf: b"" },
];

/// The guest of this name.
pub fn find(name: &str) -> Option<&'static Guest> {
    ALL.iter().find(|guest| guest.name == name)
}
