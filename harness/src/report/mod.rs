//! Reports on runs and evidence, for terminals, browsers and CI.

pub mod errors;
pub mod folder;
pub mod html;
pub mod junit;
pub mod merge;
pub mod paint;
pub mod qmp_text;
pub mod record;
pub mod show;
pub mod stdout;
pub mod terminal;
pub mod tested;
