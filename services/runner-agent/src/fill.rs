//! Fills `{port}`, `{host}`, `{id}`, `{memory}`, `{concurrency}`, `{context}` and `{berth}` into an engine's
//! command line and environment.

/// What the placeholders stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Values {
    pub(crate) port: u16,
    /// The address to listen on.
    pub(crate) host: &'static str,
    /// The model's id.
    pub(crate) id: String,
    pub(crate) memory: u64,
    pub(crate) concurrency: u32,
    /// 0 where none is set, which engines read as "as the model says".
    pub(crate) context: u32,
    /// This program.
    pub(crate) berth: String,
}

impl Values {
    fn of(&self, name: &str) -> Option<String> {
        Some(match name {
            "port" => self.port.to_string(),
            "host" => self.host.into(),
            "id" => self.id.clone(),
            "memory" => self.memory.to_string(),
            "concurrency" => self.concurrency.to_string(),
            "context" => self.context.to_string(),
            "berth" => self.berth.clone(),
            _ => return None,
        })
    }
}

/// Replaces the known names; any other brace stays as it is, since arguments may hold JSON.
pub(crate) fn fill(text: &str, values: &Values) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        out.push_str(before);
        let known = after.split_once('}').and_then(|(name, tail)| values.of(name).map(|value| (value, tail)));
        match known {
            Some((value, tail)) => {
                out.push_str(&value);
                rest = tail;
            }
            None => {
                out.push('{');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

/// Each of a list.
pub(crate) fn fill_all(texts: &[String], values: &Values) -> Vec<String> {
    texts.iter().map(|text| fill(text, values)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values() -> Values {
        Values {
            port: 8080,
            host: "127.0.0.1",
            id: "org/m:1".into(),
            memory: 1024,
            concurrency: 4,
            context: 0,
            berth: "/bin/berth".into(),
        }
    }

    #[test]
    fn known_names_are_replaced_wherever_they_stand() {
        assert_eq!(fill("--bind={host}:{port}", &values()), "--bind=127.0.0.1:8080");
        assert_eq!(fill("{berth}", &values()), "/bin/berth");
        assert_eq!(fill("{id} {memory} {concurrency} {context}", &values()), "org/m:1 1024 4 0");
    }

    #[test]
    fn json_in_an_argument_keeps_its_braces() {
        let text = r#"{"a":{"port":{port}},"b":"{x}"} {{id}} {"#;
        assert_eq!(fill(text, &values()), r#"{"a":{"port":8080},"b":"{x}"} {org/m:1} {"#);
    }

    proptest! {
        #[test]
        fn text_without_a_placeholder_stays_as_it_is(text in "[^{]*|[{}\"a-z0-9:, ]*") {
            let names = ["{port}", "{host}", "{id}", "{memory}", "{concurrency}", "{context}", "{berth}"];
            prop_assume!(!names.iter().any(|name| text.contains(name)));
            prop_assert_eq!(fill(&text, &values()), text);
        }

        #[test]
        fn a_placeholder_between_any_text_is_replaced_once(before in "[^{]*", after in "[^{]*") {
            let text = format!("{before}{{port}}{after}");
            prop_assert_eq!(fill(&text, &values()), format!("{before}8080{after}"));
        }
    }
}
