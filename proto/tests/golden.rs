//! The API as text. Run with `BERTH_UPDATE_GOLDEN=1` to accept a change.
#![allow(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FileDescriptorSet};

fn message(prefix: &str, m: &DescriptorProto, out: &mut Vec<String>) {
    let name = format!("{prefix}.{}", m.name());
    for f in &m.field {
        let kind = match f.r#type() {
            Type::Message | Type::Enum => f.type_name().trim_start_matches('.').to_owned(),
            scalar => scalar
                .as_str_name()
                .trim_start_matches("TYPE_")
                .to_lowercase(),
        };
        let repeated = if f.label() == Label::Repeated {
            "repeated "
        } else {
            ""
        };
        let optional = if f.proto3_optional() { "optional " } else { "" };
        let oneof = match f.oneof_index {
            Some(i) if !f.proto3_optional() => format!(" in {}", m.oneof_decl[i as usize].name()),
            _ => String::new(),
        };
        out.push(format!(
            "field {name}.{} = {}: {optional}{repeated}{kind}{oneof}",
            f.name(),
            f.number()
        ));
    }
    for e in &m.enum_type {
        for v in &e.value {
            out.push(format!(
                "enum {name}.{}.{} = {}",
                e.name(),
                v.name(),
                v.number()
            ));
        }
    }
    for nested in &m.nested_type {
        message(&name, nested, out);
    }
}

fn listing() -> String {
    let set = FileDescriptorSet::decode(berth_proto::FILE_DESCRIPTOR_SET).unwrap();
    let mut out = Vec::new();
    for file in &set.file {
        let package = file.package();
        if package.starts_with("google.protobuf") {
            continue;
        }
        for s in &file.service {
            for m in &s.method {
                let stream = |on: bool| if on { "stream " } else { "" };
                out.push(format!(
                    "rpc {package}.{}/{} ({}{}) -> {}{}",
                    s.name(),
                    m.name(),
                    stream(m.client_streaming()),
                    m.input_type().trim_start_matches('.'),
                    stream(m.server_streaming()),
                    m.output_type().trim_start_matches('.')
                ));
            }
        }
        for m in &file.message_type {
            message(package, m, &mut out);
        }
        for e in &file.enum_type {
            for v in &e.value {
                out.push(format!(
                    "enum {package}.{}.{} = {}",
                    e.name(),
                    v.name(),
                    v.number()
                ));
            }
        }
    }
    out.sort();
    out.join("\n") + "\n"
}

#[test]
fn api_listing_is_checked_in() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/api.txt");
    let now = listing();
    if std::env::var_os("BERTH_UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &now).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap_or_default();
    let gone: Vec<_> = golden.lines().filter(|l| !now.contains(*l)).collect();
    let new: Vec<_> = now.lines().filter(|l| !golden.contains(*l)).collect();
    assert!(
        gone.is_empty() && new.is_empty(),
        "the API changed; gone: {gone:#?} new: {new:#?} (BERTH_UPDATE_GOLDEN=1 accepts it)"
    );
}
