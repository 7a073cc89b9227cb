//! `caudal schema`: the JSON Schema of the config file, with or without `--json`.

use super::code;
use super::output::Output;
use caudal_model::Result;

pub(super) fn execute(output: &Output) -> Result<u8> {
    output.json(&crate::config::json_schema())?;
    Ok(code::DONE)
}
