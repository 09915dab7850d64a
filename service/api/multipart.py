"""Reads `multipart/form-data` as it arrives: the part `file` goes to the upload, the others become fields."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from streaming_form_data import ParseFailedException, StreamingFormDataParser
from streaming_form_data.targets import BaseTarget

from service.problems import MalformedMultipart
from service.storage.intake import Upload

MAX_FIELD_BYTES = 256 * 1024

MAX_VALUES = 256
"""Of one field: more than any may have, and few enough to be told so by its own check."""


class _FileTarget(BaseTarget):  # type: ignore[misc]  # the library is not annotated
    """Keeps what the parser found in the present chunk, until the reader takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = 0
        self.pending: list[bytes] = []

    def on_start(self) -> None:
        self.parts += 1

    def on_data_received(self, chunk: bytes) -> None:
        self.pending.append(chunk)

    def take(self) -> bytes:
        data, self.pending = b"".join(self.pending), []
        return data


class _FieldTarget(BaseTarget):  # type: ignore[misc]
    """The values of a field that may come several times."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[bytearray] = []
        self._bytes = 0

    def on_start(self) -> None:
        if len(self.values) == MAX_VALUES:
            raise MalformedMultipart(f"A field comes more than {MAX_VALUES} times.")
        self.values.append(bytearray())

    def on_data_received(self, chunk: bytes) -> None:
        self.values[-1] += chunk
        self._bytes += len(chunk)
        if self._bytes > MAX_FIELD_BYTES:
            raise MalformedMultipart(f"A field holds more than {MAX_FIELD_BYTES} bytes.")


class MultipartReader:
    """fields: names of the text fields to keep; what came of them is in `values`."""

    def __init__(self, content_type: str, fields: tuple[str, ...]) -> None:
        self._file = _FileTarget()
        self._fields = {name: _FieldTarget() for name in fields}
        try:
            self._parser = StreamingFormDataParser(headers={"Content-Type": content_type}, strict=True)
        except ParseFailedException as error:
            raise MalformedMultipart("The Content-Type names no boundary.") from error
        self._parser.register("file", self._file)
        for name, target in self._fields.items():
            self._parser.register(name, target)

    async def read(self, chunks: AsyncIterator[bytes], upload: Upload) -> None:
        """Feed the whole body. Raises MalformedMultipart, also for a part of another name."""
        async for chunk in chunks:
            try:
                self._parser.data_received(chunk)
            except ParseFailedException as error:
                raise MalformedMultipart("The body is not multipart/form-data with known fields.") from error
            await upload.write(self._file.take())
        if self._file.parts != 1:
            raise MalformedMultipart("There must be exactly one part named file.")

    @property
    def filename(self) -> str | None:
        """The file's name as the client gave it."""
        name = self._file.multipart_filename
        return None if name is None else str(name)

    @property
    def values(self) -> Mapping[str, list[str]]:
        """The fields that came, each with its values in order."""
        try:
            return {
                name: [value.decode() for value in target.values]
                for name, target in self._fields.items()
                if target.values
            }
        except UnicodeDecodeError as error:
            raise MalformedMultipart("A field is not UTF-8 text.") from error
