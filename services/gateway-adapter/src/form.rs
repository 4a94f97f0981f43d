//! What routing must know of a form with files: the same as of a JSON body, from its fields.

use std::borrow::Cow;

use berth_wire::multipart::{self, Part};
use berth_wire::{ApiError, ErrorKind};

use crate::request::{Asked, bounded, missing_model};

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::InvalidRequest, "invalid_form", message)
}

/// Reads a form.
pub(crate) fn look<'a>(content_type: &str, body: &'a [u8]) -> Result<Asked<'a>, ApiError> {
    let parts = multipart::parts(content_type, body).map_err(|error| {
        let told = invalid(format!("the body is no form: {error}"));
        match error.field() {
            Some(field) => told.param(&shown(field)),
            None => told,
        }
    })?;
    let model = field(&parts, body, "model")?.ok_or_else(missing_model)?;
    let stream = match field(&parts, body, "stream")? {
        None => false,
        Some(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "1" => true,
            "false" | "0" | "" => false,
            _ => return Err(invalid("`stream` must be true or false").param("stream")),
        },
    };
    let session = field(&parts, body, "user")?.and_then(bounded);
    Ok(Asked { model: Cow::Borrowed(model), stream, include_usage: false, session })
}

/// The one field of a name: two would leave it to the engine which counts.
fn field<'a>(parts: &[Part], body: &'a [u8], name: &str) -> Result<Option<&'a str>, ApiError> {
    let mut named = parts.iter().filter(|part| part.name == name);
    let Some(part) = named.next() else { return Ok(None) };
    if named.next().is_some() {
        return Err(invalid(format!("the form has the field `{name}` twice")).param(name));
    }
    if part.file {
        return Err(invalid(format!("the field `{name}` must be a text, not a file")).param(name));
    }
    let value = body.get(part.value.clone()).unwrap_or_default();
    let text = std::str::from_utf8(value).ok().filter(|text| !text.chars().any(char::is_control));
    text.map(Some).ok_or_else(|| invalid(format!("the field `{name}` is no line of text")).param(name))
}

fn shown(field: &str) -> String {
    field.chars().filter(|c| !c.is_control()).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: &str = "multipart/form-data; boundary=xy";

    fn form(fields: &[(&str, &str)]) -> Vec<u8> {
        let mut body = String::new();
        for (name, value) in fields {
            body.push_str(&format!("--xy\r\nContent-Disposition: form-data; name={name}\r\n\r\n{value}\r\n"));
        }
        body.push_str("--xy--\r\n");
        body.into_bytes()
    }

    #[test]
    fn the_model_is_found_among_files_and_not_copied() {
        let body = form(&[("file; filename=model", "\0\u{1}"), ("model", "org/m"), ("stream", "True")]);
        let asked = look(KIND, &body).unwrap();
        assert!(matches!(asked.model, Cow::Borrowed("org/m")) && asked.stream);
    }

    #[test]
    fn what_is_wrong_is_named_without_its_value() {
        let param = |fields: &[(&str, &str)]| {
            let error = look(KIND, &form(fields)).unwrap_err();
            assert!(!error.message.contains("secret"), "{}", error.message);
            error.param.unwrap_or_default()
        };
        assert_eq!(param(&[("file", "secret")]), "model");
        assert_eq!(param(&[("model", "secret"), ("model", "b")]), "model");
        assert_eq!(param(&[("model; filename=x", "secret")]), "model");
        assert_eq!(param(&[("model", "secret\n")]), "model");
        assert_eq!(param(&[("model", "m"), ("stream", "secret")]), "stream");
        let mut cut = form(&[("model", "m"), ("file", "secret")]);
        cut.truncate(cut.len() - 9);
        assert_eq!(look(KIND, &cut).unwrap_err().param.as_deref(), Some("file"));
        assert!(look("multipart/form-data", &cut).unwrap_err().message.contains("boundary"));
    }
}
