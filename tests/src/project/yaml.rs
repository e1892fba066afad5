//! YAML of the plainest kind: sections by indentation, every leaf as JSON, which YAML contains.

use serde_json::Value;

pub(super) fn to_string(value: &Value) -> String {
    let mut yaml = String::new();
    write(value, 0, &mut yaml);
    yaml
}

fn write(value: &Value, depth: usize, yaml: &mut String) {
    let Value::Object(section) = value else { return };
    for (key, value) in section {
        yaml.push_str(&"  ".repeat(depth));
        yaml.push_str(key);
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                yaml.push_str(":\n");
                write(value, depth + 1, yaml);
            }
            leaf => yaml.push_str(&format!(": {leaf}\n")),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn nests_by_indentation_and_quotes_leaves() {
        let config = json!({ "a": { "b": "x: \"y\"", "c": 3 }, "d": [1, { "e": true }] });
        assert_eq!(super::to_string(&config), "a:\n  b: \"x: \\\"y\\\"\"\n  c: 3\nd: [1,{\"e\":true}]\n");
    }
}
