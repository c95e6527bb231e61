//! Parses the command line of a guest.
//!
//! Also compiled on the host, for tests.

use super::mailbox::MAX_CPUS;
use super::words::WORDS;

/// The options of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// `cpus=N`: vCPUs to use, 1 to 8.
    pub cpus: usize,
    /// `seed=N`: the seed of the guest's choices.
    pub seed: u64,
    /// `ram=SIZE`: use no more RAM than that (bytes, or with K, M, G).
    pub ram: u64,
    /// `markers=N`: stop at the first N markers (see `Cpu::marker`).
    pub markers: u32,
    /// `end=never`, `end=reset`, `end=triple` or `end=exit`: what happens after the last marker.
    pub end: End,
    /// `words=N`: the words of a page that `pattern` fills and verifies, 1 to 512.
    pub words: usize,
    /// `every=N`: `pattern` uses one page in N, 1 to 4096.
    pub every: u64,
    /// `test=NAME`: the one part of the guest to run; empty for all or the first.
    pub test: Word,
    /// `fault=KIND`: how the guest `faulty` fails.
    pub fault: Fault,
    /// `ring=0`, `ring=3`: the privilege level of the body.
    pub ring: Ring,
    /// `ports=tss`, `ports=iopl`: what opens I/O ports to CPL3.
    pub ports: Ports,
}

/// What opens I/O ports to CPL3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// The bitmap in the TSS.
    Tss,
    /// IOPL 3, too.
    Iopl,
}

/// A privilege level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// CPL0.
    Kernel,
    /// CPL3.
    User,
}

/// A word of up to 16 bytes, zero-padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word(pub [u8; 16]);

impl Word {
    /// The empty word.
    pub const EMPTY: Self = Self([0; 16]);

    fn new(text: &[u8]) -> Option<Self> {
        let mut word = Self::EMPTY;
        word.0.get_mut(..text.len())?.copy_from_slice(text);
        Some(word)
    }

    /// The word without its padding.
    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|b| *b == 0).unwrap_or(self.0.len());
        core::str::from_utf8(&self.0[..len]).unwrap_or("")
    }
}

/// How a guest ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It does not end.
    Never,
    /// It resets the machine through the i8042.
    Reset,
    /// It resets the machine by a triple fault.
    Triple,
    /// It ends the VMM through the debug exit, with value 0.
    Exit,
}

/// A way in which the guest `faulty` can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `divide`: vector 0.
    Divide,
    /// `ud`: an undefined instruction, vector 6.
    Undefined,
    /// `gp`: a privileged instruction, vector 13.
    Privileged,
    /// `page`: a read of unmapped memory, vector 14.
    Page,
    /// `panic`: a panic of the guest's code.
    Panic,
    /// `triple`: a triple fault.
    Triple,
    /// `hang`: the vCPU stops and reports nothing.
    Hang,
}

impl Options {
    /// Parses a command line. Unknown words are ignored, as on Linux; a known word with an invalid
    /// value is an error.
    pub fn parse(line: &[u8]) -> Result<Self, &'static str> {
        let mut options = Self {
            cpus: 1,
            seed: 1,
            ram: u64::MAX,
            markers: 0,
            end: End::Never,
            words: WORDS,
            every: 1,
            test: Word::EMPTY,
            fault: Fault::Undefined,
            ring: Ring::User,
            ports: Ports::Tss,
        };
        for word in line.split(u8::is_ascii_whitespace) {
            let Some(equals) = word.iter().position(|b| *b == b'=') else { continue };
            let value = &word[equals + 1..];
            match &word[..equals] {
                b"cpus" => {
                    options.cpus = number(value)
                        .filter(|n| (1..=MAX_CPUS as u64).contains(n))
                        .ok_or("command line: cpus= takes 1 to 8")?
                        as usize;
                }
                b"seed" => {
                    options.seed = number(value).ok_or("command line: seed= takes a number")?;
                }
                b"ram" => {
                    options.ram =
                        size(value).ok_or("command line: ram= takes a size such as 64M")?;
                }
                b"markers" => {
                    options.markers = number(value)
                        .and_then(|n| n.try_into().ok())
                        .ok_or("command line: markers= takes a number")?;
                }
                b"end" => {
                    options.end = match value {
                        b"never" => End::Never,
                        b"reset" => End::Reset,
                        b"triple" => End::Triple,
                        b"exit" => End::Exit,
                        _ => return Err("command line: end= takes never, reset, triple or exit"),
                    };
                }
                b"words" => {
                    options.words = number(value)
                        .filter(|n| (1..=WORDS as u64).contains(n))
                        .ok_or("command line: words= takes 1 to 512")?
                        as usize;
                }
                b"every" => {
                    options.every = number(value)
                        .filter(|n| (1..=4096).contains(n))
                        .ok_or("command line: every= takes 1 to 4096")?;
                }
                b"test" => {
                    options.test = Word::new(value)
                        .ok_or("command line: test= takes a word of up to 16 letters")?;
                }
                b"fault" => {
                    options.fault = match value {
                        b"divide" => Fault::Divide,
                        b"ud" => Fault::Undefined,
                        b"gp" => Fault::Privileged,
                        b"page" => Fault::Page,
                        b"panic" => Fault::Panic,
                        b"triple" => Fault::Triple,
                        b"hang" => Fault::Hang,
                        _ => {
                            return Err(
                                "command line: fault= takes divide, ud, gp, page, panic, triple or hang",
                            );
                        }
                    };
                }
                b"ring" => {
                    options.ring = match value {
                        b"0" => Ring::Kernel,
                        b"3" => Ring::User,
                        _ => return Err("command line: ring= takes 0 or 3"),
                    };
                }
                b"ports" => {
                    options.ports = match value {
                        b"tss" => Ports::Tss,
                        b"iopl" => Ports::Iopl,
                        _ => return Err("command line: ports= takes tss or iopl"),
                    };
                }
                _ => {}
            }
        }
        Ok(options)
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    core::str::from_utf8(digits).ok()?.parse().ok()
}

/// Parses a size: bytes, or with a suffix K, M or G.
pub fn size(value: &[u8]) -> Option<u64> {
    let (digits, shift) = match value.split_last()? {
        (b'K' | b'k', digits) => (digits, 10),
        (b'M' | b'm', digits) => (digits, 20),
        (b'G' | b'g', digits) => (digits, 30),
        _ => (value, 0),
    };
    number(digits)?.checked_mul(1 << shift)
}
