//! Text written into preallocated memory, for code that must not allocate.

use std::cell::UnsafeCell;
use std::ffi::c_char;
use std::fmt;

/// An environment string, `NAME=` and a value that is set later.
pub struct Variable<const N: usize> {
    bytes: UnsafeCell<[u8; N]>,
    prefix: usize,
}

impl<const N: usize> Variable<N> {
    /// Creates `name=` with an empty value.
    pub fn new(name: &str) -> Self {
        let mut bytes = [0; N];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        bytes[name.len()] = b'=';
        Self { bytes: UnsafeCell::new(bytes), prefix: name.len() + 1 }
    }

    /// Returns the string, NUL-terminated.
    pub fn as_ptr(&self) -> *const c_char {
        self.bytes.get().cast()
    }

    /// Sets the value: one line, truncated to the space available.
    ///
    /// # Safety
    /// No other thread may read or write it during the call.
    pub unsafe fn set(&self, value: fmt::Arguments<'_>) {
        // SAFETY: the caller promises that no other thread uses it.
        let bytes = unsafe { &mut *self.bytes.get() };
        let room = &mut bytes[self.prefix..N - 1];
        let length = Line::write(room, value).len();
        bytes[self.prefix + length] = 0;
    }

    /// Returns the value.
    ///
    /// # Safety
    /// No thread may write it while the text is used.
    pub unsafe fn value(&self) -> &str {
        // SAFETY: the caller's promise.
        let bytes = unsafe { &(&*self.bytes.get())[self.prefix..] };
        let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        str::from_utf8(&bytes[..length]).unwrap_or_default()
    }
}

/// One line of text in a borrowed buffer.
pub struct Line<'a> {
    buffer: &'a mut [u8],
    length: usize,
}

impl<'a> Line<'a> {
    /// Writes `text` to `buffer` without control characters, truncated at a character boundary;
    /// returns what was written.
    pub fn write(buffer: &'a mut [u8], text: fmt::Arguments<'_>) -> &'a [u8] {
        let mut line = Self { buffer, length: 0 };
        // It never fails; whatever does not fit is dropped.
        let _ = fmt::write(&mut line, text);
        &line.buffer[..line.length]
    }
}

impl fmt::Write for Line<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            let character = if character.is_control() { ' ' } else { character };
            let Some(room) = self.buffer.get_mut(self.length..self.length + character.len_utf8())
            else {
                return Ok(());
            };
            character.encode_utf8(room);
            self.length += character.len_utf8();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_is_one_line_and_truncated() {
        let variable = Variable::<16>::new("NAME");
        let whole = || {
            // SAFETY: it is NUL-terminated, and nothing writes it at the same time.
            unsafe { std::ffi::CStr::from_ptr(variable.as_ptr()) }.to_str().unwrap().to_owned()
        };
        assert_eq!(whole(), "NAME=");
        // SAFETY: there is one thread, and no reference is kept.
        unsafe { variable.set(format_args!("a\nb\0c")) };
        assert_eq!(whole(), "NAME=a b c");
        // SAFETY: as above.
        unsafe { variable.set(format_args!("123456789é0")) };
        assert_eq!(whole(), "NAME=123456789");
        // SAFETY: as above.
        assert_eq!(unsafe { variable.value() }, "123456789");
    }
}
