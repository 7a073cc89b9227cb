//! Secrets: where the config file says one is, and how it is fetched.
//!
//! A [`SecretRef`] is what the file holds; the value exists only as a
//! [`SecretString`], which neither prints nor serializes. A literal in the file is one
//! from the moment it is parsed. References print as they stand, since they tell
//! where to look and nothing more.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

/// The schema format of secrets; a value of it is never repeated in an error.
pub const SECRET_FORMAT: &str = "caudal-secret";

/// Where a secret is.
#[derive(Clone)]
pub enum SecretRef {
    /// `env:NAME`: an environment variable.
    Env(String),
    /// `file:/path`: a file's content, without the line's end.
    File(PathBuf),
    /// `aws-secret:ARN[#key]`: AWS Secrets Manager, and a key of its JSON.
    AwsSecret(String),
    /// The secret itself.
    Literal(SecretString),
}

impl SecretRef {
    /// What the config file says.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix("env:") {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(
                    "`env:` needs the name of an environment variable, like \"env:SHOP_PASSWORD\""
                        .into(),
                );
            }
            Ok(SecretRef::Env(name.to_owned()))
        } else if let Some(path) = text.strip_prefix("file:") {
            if path.is_empty() {
                return Err("`file:` needs a path, like \"file:/run/secrets/shop\"".into());
            }
            Ok(SecretRef::File(PathBuf::from(path)))
        } else if let Some(arn) = text.strip_prefix("aws-secret:") {
            Ok(SecretRef::AwsSecret(arn.to_owned()))
        } else {
            Ok(SecretRef::Literal(text.to_owned().into()))
        }
    }

    /// The secret. The error says which reference failed, never a value.
    pub fn resolve(&self) -> Result<SecretString, String> {
        match self {
            SecretRef::Env(name) => match std::env::var(name) {
                Ok(v) => Ok(v.into()),
                Err(std::env::VarError::NotPresent) => {
                    Err(format!("the environment variable {name} is not set"))
                }
                Err(std::env::VarError::NotUnicode(_)) => {
                    Err(format!("the environment variable {name} is not UTF-8"))
                }
            },
            SecretRef::File(path) => match std::fs::read(path) {
                Ok(bytes) => match String::from_utf8(bytes) {
                    Ok(text) => {
                        let line = text.strip_suffix('\n').unwrap_or(&text);
                        Ok(line.strip_suffix('\r').unwrap_or(line).to_owned().into())
                    }
                    Err(_) => Err(format!("the file {} is not UTF-8", path.display())),
                },
                Err(e) => Err(format!("the file {} cannot be read: {e}", path.display())),
            },
            SecretRef::AwsSecret(_) => Err("`aws-secret:` is not supported by this version; \
                 use `env:NAME` or `file:/path` (ECS can put a secret into either)"
                .into()),
            SecretRef::Literal(value) => Ok(value.clone()),
        }
    }

    /// Whether the secret stands in the config file itself.
    pub fn is_literal(&self) -> bool {
        matches!(self, SecretRef::Literal(_))
    }

    /// Whether there is anything in it, as far as the file tells.
    pub fn is_empty_literal(&self) -> bool {
        matches!(self, SecretRef::Literal(v) if v.expose_secret().is_empty())
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretRef::Env(name) => write!(f, "env:{name}"),
            SecretRef::File(path) => write!(f, "file:{}", path.display()),
            SecretRef::AwsSecret(arn) => write!(f, "aws-secret:{arn}"),
            SecretRef::Literal(_) => f.write_str("***"),
        }
    }
}

impl fmt::Debug for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for SecretRef {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SecretRef {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        SecretRef::parse(&String::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for SecretRef {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": SECRET_FORMAT,
            "examples": ["env:SHOP_PASSWORD", "file:/run/secrets/shop"],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_resolve_and_literals_never_print() {
        let dir = std::env::temp_dir().join(format!("caudal-secret-{}", std::process::id()));
        std::fs::write(&dir, "hunter2\r\n").unwrap();
        let file = SecretRef::parse(&format!("file:{}", dir.display())).unwrap();
        assert_eq!(file.resolve().unwrap().expose_secret(), "hunter2");
        std::fs::remove_file(&dir).unwrap();
        assert!(file.resolve().unwrap_err().contains("cannot be read"));

        let literal = SecretRef::parse("hunter2").unwrap();
        assert_eq!(format!("{literal} {literal:?}"), "*** ***");
        assert_eq!(serde_json::to_string(&literal).unwrap(), "\"***\"");
        assert_eq!(literal.resolve().unwrap().expose_secret(), "hunter2");

        let env = SecretRef::parse("env:CAUDAL_TEST_NEVER_SET").unwrap();
        assert_eq!(
            env.resolve().unwrap_err(),
            "the environment variable CAUDAL_TEST_NEVER_SET is not set"
        );
        assert_eq!(format!("{env:?}"), "env:CAUDAL_TEST_NEVER_SET");
        assert!(
            SecretRef::parse("aws-secret:arn:x#k")
                .unwrap()
                .resolve()
                .is_err()
        );
        assert!(SecretRef::parse("env:").is_err() && SecretRef::parse("file:").is_err());
    }
}
