"""The JSON Schema of a rule file, from the same models that load it: what an editor completes and underlines. Pure.

It refuses nothing that the loader takes. What only the loader can say, such as a `resolve` that does not go with
thresholds, it leaves to `authwatch rules check`.
"""

from __future__ import annotations

from typing import Any, get_args

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from service.rules.descriptions import DESCRIPTIONS, FIELD_DESCRIPTIONS
from service.rules.explain_mistakes import model_at
from service.rules.fields import PLACEHOLDERS, one_or_many
from service.rules.load import RuleFile
from service.rules.match import COMPARISONS, FIELDS, NUMBERS, WORDS
from service.rules.model import CONDITIONS, GROUP_FIELDS, Rule
from service.rules.triggers import TRIGGERS
from service.rules.triggers.gauge import METRICS

DIALECT = "https://json-schema.org/draft/2020-12/schema"
DETAIL = "^details\\.[a-z][a-z0-9_]{0,59}$"
Schema = dict[str, Any]
PLAIN: Schema = {"type": ["string", "number", "boolean"]}
TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
# What is matched by, and so is typed as a match and not as any mapping.
MATCHED = {
    "Count": ("match",),
    "Ratio": ("good", "total"),
    "Quantile": ("match",),
    "Absence": ("after", "expect", "unless"),
    "Resolve": ("event",),
}
THRESHOLDS = ("gt", "gte", "lt", "lte")


class Generator(GenerateJsonSchema):
    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        """A list may be written as its only item."""
        inner = super().function_before_schema(schema)
        if schema["function"]["function"] is one_or_many:
            return {"anyOf": [inner["items"], inner]}
        return inner

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        """A key without a value is a mistake everywhere but in the events of tests, where nothing is a value."""
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """Defaults are told in the descriptions, as YAML would write them."""
        return self.generate_inner(schema["schema"])


def rule_file_schema() -> Schema:
    made = RuleFile.model_json_schema(by_alias=True, schema_generator=Generator)
    definitions: Schema = made["$defs"]
    for name, keys in MATCHED.items():
        for key in keys:
            definitions[name]["properties"][key] = one_or_more({"$ref": "#/$defs/Match"})
    definitions["Absence"]["properties"]["unless"] = one_or_more({"$ref": "#/$defs/Match"}, least=0)
    definitions["Match"] = match_schema()
    definitions["Rule"]["oneOf"] = [{"required": [name]} for name in CONDITIONS]
    definitions["Rule"]["allOf"] = [
        {
            "if": {"required": [condition.NAME]},
            "then": {"properties": {"resolve": {"propertyNames": {"enum": sorted(condition.RESOLVES)}}}},
        }
        for condition in TRIGGERS.values()
        if condition.RESOLVES
    ] + [{"if": {"required": ["state"]}, "then": {"properties": {"resolve": False}}}]
    labels = sorted({label for _, labels in METRICS.values() for label in labels} - set(GROUP_FIELDS))
    definitions["Rule"]["properties"]["group_by"]["items"] = {
        "anyOf": [{"enum": [*GROUP_FIELDS, *labels]}, {"type": "string", "pattern": DETAIL}]
    }
    definitions["Rule"]["properties"]["group_by"]["uniqueItems"] = True
    definitions["Rule"]["properties"]["labels"]["additionalProperties"] = False
    definitions["Absence"]["oneOf"] = [{"required": ["within"]}, {"required": ["deadline"]}]
    definitions["Absence"]["properties"]["deadline"] = {"type": "string", "pattern": DETAIL}
    definitions["Gauge"]["oneOf"] = [{"required": [bound]} for bound in THRESHOLDS]
    definitions["Gauge"]["properties"]["metric"] = {
        "oneOf": [{"const": name, "description": what} for name, (what, _) in METRICS.items()]
    }
    definitions["Count"]["properties"]["distinct"] = field_name(FIELDS)
    definitions["Quantile"]["properties"]["field"] = field_name(NUMBERS)
    definitions["TestEvent"]["properties"]["kind"] = {"enum": list(WORDS["kind"])}
    for name in ("summary", "what_to_do"):
        definitions["Annotations"]["properties"][name]["pattern"] = placeholders()
    nullable(definitions["TestEvent"]["properties"])
    describe(made, definitions)
    return {"$schema": DIALECT, **made, "title": "Authwatch rules"}


def describe(made: Schema, definitions: Schema) -> None:
    """Titles that repeat a key are noise; what a key means is what an editor shows."""
    for name, schema in [("RuleFile", made), *definitions.items()]:
        schema.pop("title", None)
        if name in DESCRIPTIONS:
            schema["description"] = DESCRIPTIONS[name]
        else:
            schema.pop("description", None)
        for key, value in schema.get("properties", {}).items():
            value.pop("title", None)
            if text := FIELD_DESCRIPTIONS.get(f"{name}.{key}"):
                value["description"] = text


def nullable(properties: Schema) -> None:
    """In a test, an event may say of a field that it is not there."""
    event = model_at(Rule, ("tests", "events"))
    for name, field in event.model_fields.items() if event is not None else ():
        if type(None) in get_args(field.annotation):
            properties[name] = {"anyOf": [properties[name], {"type": "null"}]}


def one_or_more(item: Schema, *, least: int = 1) -> Schema:
    return {"anyOf": [item, {"type": "array", "items": item, "minItems": least, "maxItems": 50}]}


def field_name(names: tuple[str, ...]) -> Schema:
    return {"anyOf": [{"enum": list(names)}, {"type": "string", "pattern": DETAIL}]}


def match_schema() -> Schema:
    """Field -> a value, a list of values, or operators: for each field only what it can be compared with."""
    properties = {name: compared(TEXT, orders=False) for name in FIELDS}
    properties.update({name: compared({"enum": list(words)}, orders=False) for name, words in WORDS.items()})
    properties.update({name: compared(NUMBER, orders=True) for name in NUMBERS})
    return {
        "type": "object",
        "properties": properties,
        "patternProperties": {DETAIL: compared(PLAIN, orders=True)},
        "additionalProperties": False,
        "minProperties": 1,
    }


def compared(value: Schema, *, orders: bool) -> Schema:
    several = {"type": "array", "items": value, "minItems": 1}
    operators: Schema = {"ne": {"anyOf": [value, several]}, "exists": {"type": "boolean"}}
    if orders:
        operators.update(dict.fromkeys(COMPARISONS, NUMBER))
    if value is not NUMBER:
        operators["glob"] = {"type": "string", "minLength": 1}
    by_operator = {"type": "object", "properties": operators, "additionalProperties": False, "minProperties": 1}
    return {"anyOf": [value, several, by_operator]}


def placeholders() -> str:
    names = "|".join(PLACEHOLDERS)
    return "^(?:[^{}]|\\{(?!\\{)|\\}(?!\\})|\\{\\{\\s*(?:" + names + ")\\s*\\}\\})*$"
