//! Gives a request the model name that the engine answers to, and leaves every other byte as the client sent it.

use std::ops::Range;

use berth_wire::{EngineKind, Job, ModelSpec, multipart};
use bytes::Bytes;

use crate::adapters::{choice, choose};
use crate::spans::{splice, values};

/// What is to be done with a request's body before the engine sees it.
pub(crate) struct Prepare {
    content_type: Option<String>,
    served: String,
    /// Of a request to a path of the engine's own: names by which the model itself may be meant.
    names: Option<Vec<String>>,
    /// Which adapters apply, where requests say so beside the model's name.
    adapters: Option<String>,
}

impl Prepare {
    /// For a job on an engine of `model`.
    pub(crate) fn of(job: &Job, model: &ModelSpec) -> Self {
        let names =
            || std::iter::once(model.id.as_str().to_owned()).chain(model.aliases.iter().cloned()).collect();
        Self {
            content_type: job.content_type.clone(),
            served: match &job.adapter {
                Some(adapter) if model.engine.kind == EngineKind::Vllm => adapter.to_string(),
                _ => model.engine.served_name.clone(),
            },
            adapters: choice(job, model),
            names: job.target.is_some().then(names),
        }
    }

    /// The body as the engine gets it.
    pub(crate) fn body(&self, body: Bytes) -> Bytes {
        let kind = self.content_type.as_deref();
        let body = match &self.adapters {
            Some(choice) => choose(body, choice),
            None => body,
        };
        match &self.names {
            None => rewrite(body, kind, &self.served),
            Some(names) => {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                rewrite_own(body, kind, &names, &self.served)
            }
        }
    }
}

/// The body with its model's name set to `served`. What does not call itself a form is JSON if it reads as such, whatever
/// its `Content-Type`: curl calls all a form of another kind, and engines read it all the same. What is neither stays.
fn rewrite(body: Bytes, content_type: Option<&str>, served: &str) -> Bytes {
    match content_type {
        Some(kind) if multipart::is_form(kind) => rewrite_field(body, kind, served),
        _ => rewrite_model(body, served),
    }
}

/// The same for a body that may name something else by `model` (an adapter, say): only `names` are replaced.
fn rewrite_own(body: Bytes, content_type: Option<&str>, names: &[&str], served: &str) -> Bytes {
    let spans = match content_type {
        Some(kind) if multipart::is_form(kind) => field_spans(&body, kind),
        _ => model_spans(&body),
    };
    let own = |span: &Range<usize>| {
        let value = body.get(span.clone()).unwrap_or_default();
        let name = serde_json::from_slice::<String>(value).ok();
        names.iter().any(|own| name.as_deref() == Some(own) || value == own.as_bytes())
    };
    if spans.iter().all(own) { rewrite(body, content_type, served) } else { body }
}

/// The form with its field `model` set to `served`.
fn rewrite_field(body: Bytes, content_type: &str, served: &str) -> Bytes {
    // A name over several lines could end the field.
    if served.contains(['\r', '\n']) {
        return body;
    }
    let spans = field_spans(&body, content_type);
    replace(body, spans, served.as_bytes())
}

fn field_spans(body: &[u8], content_type: &str) -> Vec<Range<usize>> {
    let parts = multipart::parts(content_type, body).unwrap_or_default();
    parts.into_iter().filter(|part| part.name == "model").map(|part| part.value).collect()
}

/// The body with the top-level `model` set to `served`. A body that is no JSON object, or names no model, stays:
/// the engine says what is wrong with it.
fn rewrite_model(body: Bytes, served: &str) -> Bytes {
    let Ok(wanted) = serde_json::to_string(served) else { return body };
    let spans = model_spans(&body);
    replace(body, spans, wanted.as_bytes())
}

/// The body with `wanted` at each of `spans`; not copied where it says so already.
fn replace(body: Bytes, spans: Vec<Range<usize>>, wanted: &[u8]) -> Bytes {
    if spans.iter().all(|span| body.get(span.clone()) == Some(wanted)) {
        return body;
    }
    let edits: Vec<_> = spans.into_iter().map(|span| (span, wanted)).collect();
    splice(body, &edits)
}

/// Where the values of top-level `model` keys lie.
fn model_spans(body: &[u8]) -> Vec<Range<usize>> {
    values(body, "model").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn rewritten(text: &str, served: &str) -> String {
        let out = rewrite_model(Bytes::from(text.to_owned()), served);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn only_the_value_changes_and_the_spacing_stays() {
        assert_eq!(
            rewritten(
                "{ \"x\":1.0e3,\n  \"model\" :  \"alias\" , \"messages\":[{\"model\":\"no\"}] }",
                "real\"m"
            ),
            "{ \"x\":1.0e3,\n  \"model\" :  \"real\\\"m\" , \"messages\":[{\"model\":\"no\"}] }"
        );
    }

    #[test]
    fn what_is_no_object_with_a_model_stays() {
        for text in ["", "[1]", "{\"x\":1}", "{\"model\":", "nonsense", "\"model\""] {
            assert_eq!(rewritten(text, "m"), text);
        }
    }

    #[test]
    fn a_second_or_escaped_key_is_no_way_around() {
        assert_eq!(rewritten(r#"{"model":"a","mod\u0065l":"b"}"#, "m"), r#"{"model":"m","mod\u0065l":"m"}"#);
    }

    #[test]
    fn a_right_name_costs_no_copy() {
        let body = Bytes::from_static(br#"{"model":"m"}"#);
        assert_eq!(rewrite_model(body.clone(), "m").as_ptr(), body.as_ptr());
    }

    const FORM: &str = "multipart/form-data; boundary=xy";

    fn form(model: &str) -> Bytes {
        let file =
            "--xy\r\ncontent-disposition: form-data; name=file; filename=model\r\n\r\n\0\r\n--x\r\nmodel\r\n";
        let model =
            format!("--xy\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--xy--\r\n");
        Bytes::from([file, &model].concat())
    }

    #[test]
    fn of_a_form_only_the_field_changes() {
        assert_eq!(rewrite(form("alias"), Some(FORM), "served/m"), form("served/m"));
        assert_eq!(rewrite(form(""), Some(FORM), "m"), form("m"));
        let right = form("m");
        assert_eq!(rewrite(right.clone(), Some(FORM), "m").as_ptr(), right.as_ptr());
        assert_eq!(rewrite(form("alias"), Some(FORM), "m\r\n--xy--"), form("alias"));
        assert_eq!(rewrite(form("alias"), Some("audio/wav"), "m"), form("alias"));
    }

    #[test]
    fn what_goes_to_the_engine_itself_keeps_names_that_are_not_the_models() {
        let json = Some("application/json; charset=utf-8");
        let own =
            |text: &'static str| rewrite_own(Bytes::from_static(text.as_bytes()), json, &["a", "b"], "m");
        assert_eq!(own(r#"{"model":"b","x":1}"#), r#"{"model":"m","x":1}"#);
        for text in [r#"{"model":"lora"}"#, r#"{"model":"a","model":"lora"}"#, "[1]", r#"{"model":1}"#] {
            assert_eq!(own(text), text);
        }
        for kind in [None, Some("application/x-www-form-urlencoded"), Some("text/plain")] {
            let curls = rewrite_own(Bytes::from_static(br#"{"model":"a"}"#), kind, &["a"], "m");
            assert_eq!(curls, r#"{"model":"m"}"#, "{kind:?}");
            let other = Bytes::from_static(b"model=a&x={\"model\":\"a\"}");
            assert_eq!(rewrite_own(other.clone(), kind, &["a"], "m"), other);
        }
        assert_eq!(rewrite_own(form("a"), Some(FORM), &["a"], "m"), form("m"));
        assert_eq!(rewrite_own(form("c"), Some(FORM), &["a"], "m"), form("c"));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("model|.{0,6}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_parsed_body_differs_in_the_model_alone(
            fields in prop::collection::btree_map("[a-z\"\\\\]{0,8}", any_json(), 0..6),
            model in any_json(),
            served in ".*",
            pretty in any::<bool>(),
        ) {
            let mut object: serde_json::Map<_, _> = fields.into_iter().collect();
            object.insert("model".into(), model);
            let before = Value::Object(object.clone());
            let text = if pretty { serde_json::to_string_pretty(&before) } else { serde_json::to_string(&before) };
            let after: Value = serde_json::from_str(&rewritten(&text.unwrap(), &served)).unwrap();
            object.insert("model".into(), json!(served));
            prop_assert_eq!(after, Value::Object(object));
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = rewrite_model(bytes.into(), "m");
        }
    }
}
