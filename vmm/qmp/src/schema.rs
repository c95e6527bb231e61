//! The schema: a table of every command and event with its types.
//!
//! It serves to check a command's arguments and to answer `query-qmp-schema` and `query-commands`.
//! Tests check it against the serde types, so that they cannot drift apart.

mod check;
mod commands;
mod types;

pub use commands::{COMMANDS, EVENTS};

/// A type of the schema.
#[derive(Clone, Copy, Debug)]
pub enum Type {
    /// Text.
    Str,
    /// True or false.
    Bool,
    /// A signed number, 64 bit.
    Int,
    /// An unsigned number, 16 bit.
    Uint16,
    /// An unsigned number, 64 bit.
    Uint64,
    /// A number that need not be whole.
    Number,
    /// Any value.
    Any,
    /// A list.
    Array(&'static Type),
    /// One of a list of names.
    Enum(&'static Enum),
    /// An object.
    Object(&'static Object),
}

/// An enumeration.
#[derive(Debug)]
pub struct Enum {
    /// Its name; no client may rely on it.
    pub name: &'static str,
    /// Its values.
    pub values: &'static [&'static str],
}

/// An object: its members, and those that depend on the value of one of them.
#[derive(Debug)]
pub struct Object {
    /// Its name; no client may rely on it.
    pub name: &'static str,
    /// The members it always has.
    pub members: &'static [Member],
    /// More members, depending on the value of one.
    pub variants: Option<Variants>,
}

/// One member of an object.
#[derive(Debug)]
pub struct Member {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub of: Type,
    /// True if it may be absent.
    pub optional: bool,
}

/// The variants of an object.
#[derive(Debug)]
pub struct Variants {
    /// The member whose value selects the variant.
    pub tag: &'static str,
    /// Value and members; a value without a case adds none.
    pub cases: &'static [(&'static str, &'static Object)],
}

/// A command.
#[derive(Debug)]
pub struct CommandSpec {
    /// Its name.
    pub name: &'static str,
    /// Its arguments.
    pub arguments: &'static Object,
    /// The type of its answer.
    pub returns: Type,
}

/// An event.
#[derive(Debug)]
pub struct EventSpec {
    /// Its name.
    pub name: &'static str,
    /// Its data.
    pub data: &'static Object,
}

/// Returns the command called `name`.
pub fn command(name: &str) -> Option<&'static CommandSpec> {
    COMMANDS.iter().find(|command| command.name == name)
}

#[cfg(test)]
mod tests;
