//! Converts between bytes and JSON values: an incremental decoder and an encoder.
//!
//! The decoder only finds where a message ends; `serde_json` parses its content.
//! Messages may follow each other directly, be split anywhere and need no newline.
//! Source: QEMU `qobject/json-lexer.c`, `qobject/json-streamer.c`.

use std::io;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};

use no_duplicate_keys::NoDuplicateKeys;

/// Maximum length of a message in bytes, unless the decoder has another limit.
pub const MAX_MESSAGE: usize = 1 << 20;

/// Maximum nesting depth of a message (the limit of `serde_json` is 128).
pub const MAX_DEPTH: usize = 100;

const _: () = assert!(MAX_DEPTH <= u128::BITS as usize);

/// Errors in the input; the wording is QEMU's.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// A byte that JSON does not allow outside a string, or not at this place.
    #[error("JSON parse error, stray '{}'", .0.escape_ascii())]
    Stray(u8),
    /// The brackets balance, but the text between them is not JSON.
    #[error("JSON parse error, {0}")]
    Syntax(#[source] serde_json::Error),
    /// Longer than [`MAX_MESSAGE`], or than the limit of this decoder.
    #[error("JSON token size limit exceeded")]
    TooLong,
    /// Deeper than [`MAX_DEPTH`].
    #[error("JSON nesting depth limit exceeded")]
    TooDeep,
}

/// What the scanner is in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scan {
    /// Nothing: between messages.
    Between,
    /// A number, `true`, `false` or `null` outside of brackets.
    Scalar,
    /// A string, on its own or inside `depth` brackets.
    String { escaped: bool },
    /// Inside brackets, outside strings.
    Brackets,
    /// Nothing: after an error.
    Skip(Skip),
}

/// How far the decoder skips after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Skip {
    /// To a newline or an opening bracket: the garbage was between messages.
    ToBracket,
    /// To a newline: the garbage was inside a message.
    ToNewline,
}

/// An error, and what to skip after it.
type Failure = (DecodeError, Option<Skip>);

/// An incremental decoder of one stream.
///
/// After an error it skips to the next newline (or to an opening bracket, if the garbage was
/// between messages), so that one bad line causes one error. A byte 0xFF, which never occurs in
/// UTF-8 text, always resets the decoder.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Maximum length of a message in bytes.
    limit: usize,
    /// Where the message being scanned begins.
    start: usize,
    /// How far `buffer` has been scanned.
    scanned: usize,
    depth: usize,
    /// The kinds of the open brackets, the innermost in bit 0: set for a brace.
    braces: u128,
    scan: Scan,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::with_pending(Vec::new())
    }
}

impl Decoder {
    /// Creates a decoder for the beginning of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a decoder that continues from another one's [`pending`](Self::pending) bytes and
    /// [`skipping`](Self::skipping).
    pub fn resume(pending: Vec<u8>, skipping: Option<Skip>) -> Self {
        let mut decoder = Self::with_pending(pending);
        if let Some(skip) = skipping {
            decoder.scan = Scan::Skip(skip);
        }
        decoder
    }

    /// Creates a decoder that has been fed `pending`.
    pub fn with_pending(pending: Vec<u8>) -> Self {
        let (limit, scan) = (MAX_MESSAGE, Scan::Between);
        Self { buffer: pending, limit, start: 0, scanned: 0, depth: 0, braces: 0, scan }
    }

    /// Refuses messages longer than `limit` bytes instead of [`MAX_MESSAGE`].
    pub fn with_limit(self, limit: usize) -> Self {
        Self { limit, ..self }
    }

    /// Returns the bytes that were fed but are not yet part of a returned value or error.
    pub fn pending(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Returns how far garbage is being skipped, if it is.
    pub fn skipping(&self) -> Option<Skip> {
        match self.scan {
            Scan::Skip(skip) => Some(skip),
            _ => None,
        }
    }

    /// Appends bytes to the buffer. To bound it, feed the bytes of one read and drain
    /// [`next_value`](Self::next_value) before the next read.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.scanned -= self.start;
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the next value or error; `None` if more bytes are needed.
    pub fn next_value(&mut self) -> Option<Result<Value, DecodeError>> {
        while let Some(&byte) = self.buffer.get(self.scanned) {
            let step = match self.scan {
                Scan::Skip(skip) => {
                    self.skip(byte, skip);
                    continue;
                }
                // A number ends before the first byte that is not part of it.
                Scan::Scalar if !is_scalar(byte) => return Some(self.take()),
                _ if byte == 0xFF => Err((DecodeError::Stray(byte), None)),
                _ if self.scanned - self.start >= self.limit => {
                    Err((DecodeError::TooLong, Some(Skip::ToNewline)))
                }
                Scan::Between => self.begin(byte),
                Scan::Scalar => Ok(false),
                Scan::String { escaped } => self.in_string(byte, escaped),
                Scan::Brackets => self.in_brackets(byte),
            };
            match step {
                Err((error, skip)) => return Some(Err(self.fail(byte, error, skip))),
                Ok(complete) => {
                    self.scanned += 1;
                    if complete {
                        return Some(self.take());
                    }
                }
            }
        }
        None
    }

    fn skip(&mut self, byte: u8, skip: Skip) {
        let opens = matches!(byte, b'{' | b'[') && skip == Skip::ToBracket;
        if opens || byte == b'\n' || byte == 0xFF {
            self.scan = Scan::Between;
        }
        // The bracket is the beginning of the next message.
        if !opens {
            self.scanned += 1;
        }
        self.start = self.scanned;
    }

    fn begin(&mut self, byte: u8) -> Result<bool, Failure> {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => self.start = self.scanned + 1,
            b'{' | b'[' => return self.in_brackets(byte),
            b'"' => self.scan = Scan::String { escaped: false },
            _ if is_scalar(byte) => self.scan = Scan::Scalar,
            _ => return Err((DecodeError::Stray(byte), Some(Skip::ToBracket))),
        }
        Ok(false)
    }

    fn in_brackets(&mut self, byte: u8) -> Result<bool, Failure> {
        self.scan = Scan::Brackets;
        match byte {
            b'{' | b'[' => {
                if self.depth == MAX_DEPTH {
                    return Err((DecodeError::TooDeep, Some(Skip::ToNewline)));
                }
                self.depth += 1;
                self.braces = self.braces << 1 | u128::from(byte == b'{');
            }
            b'}' | b']' => {
                // Report a mismatch at once: waiting for the right one would swallow what follows.
                if (self.braces & 1 == 1) != (byte == b'}') {
                    return Err((DecodeError::Stray(byte), Some(Skip::ToNewline)));
                }
                self.depth -= 1;
                self.braces >>= 1;
                return Ok(self.depth == 0);
            }
            b'"' => self.scan = Scan::String { escaped: false },
            b' ' | b'\t' | b'\r' | b'\n' | b':' | b',' => {}
            _ if is_scalar(byte) => {}
            _ => return Err((DecodeError::Stray(byte), Some(Skip::ToNewline))),
        }
        Ok(false)
    }

    fn in_string(&mut self, byte: u8, escaped: bool) -> Result<bool, Failure> {
        match byte {
            0..0x20 | 0xFE => return Err((DecodeError::Stray(byte), Some(Skip::ToNewline))),
            b'"' if !escaped => {
                self.scan = if self.depth == 0 { Scan::Between } else { Scan::Brackets };
                return Ok(self.depth == 0);
            }
            _ => self.scan = Scan::String { escaped: byte == b'\\' && !escaped },
        }
        Ok(false)
    }

    /// Parses the message that ends at `scanned`.
    fn take(&mut self) -> Result<Value, DecodeError> {
        let value = serde_json::from_slice(&self.buffer[self.start..self.scanned]);
        self.restart(Scan::Between);
        value.map(|NoDuplicateKeys(value)| value).map_err(DecodeError::Syntax)
    }

    fn fail(&mut self, byte: u8, error: DecodeError, skip: Option<Skip>) -> DecodeError {
        self.scanned += 1;
        let skip = skip.filter(|_| byte != b'\n');
        self.restart(skip.map_or(Scan::Between, Scan::Skip));
        error
    }

    fn restart(&mut self, scan: Scan) {
        self.start = self.scanned;
        self.depth = 0;
        self.braces = 0;
        self.scan = scan;
    }
}

/// Returns whether `byte` can be part of a number or of a literal name.
fn is_scalar(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'+' | b'.' | b'E')
}

/// A message could not be encoded as JSON, for example because a map key is not a string.
#[derive(Debug, thiserror::Error)]
#[error("cannot encode a QMP message: {0}")]
pub struct EncodeError(#[from] serde_json::Error);

/// Encodes `message` on one line, with QEMU's spacing and line end (`\r\n`), so that it can be
/// grepped in the same way.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, EncodeError> {
    let mut line = Vec::with_capacity(128);
    message.serialize(&mut Serializer::with_formatter(&mut line, Spaced))?;
    line.extend_from_slice(b"\r\n");
    Ok(line)
}

/// Writes a space after every comma and colon.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

mod no_duplicate_keys;

#[cfg(test)]
mod tests;
