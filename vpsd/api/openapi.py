"""The API's description: what the framework derives from the handlers, made true to the wire."""

from typing import Any, get_args

import msgspec
from litestar import Litestar
from litestar.openapi.spec import Schema
from litestar.plugins import OpenAPISchemaPlugin
from litestar.typing import FieldDefinition

from vpsd.core.forms import Form


class FormSchema(OpenAPISchemaPlugin):
    """A `Form[T]` is described as its `T`."""

    @staticmethod
    def is_plugin_supported_type(value: Any) -> bool:
        return value is Form

    def is_plugin_supported_field(self, field_definition: FieldDefinition) -> bool:
        return field_definition.origin is Form

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: Any) -> Schema:
        inner = FieldDefinition.from_annotation(get_args(field_definition.annotation)[0])
        schema: Schema = schema_creator.for_field_definition(inner)
        return schema


def describe(app: Litestar) -> bytes:
    return msgspec.json.format(msgspec.json.encode(app.openapi_schema.to_schema()), indent=2)
