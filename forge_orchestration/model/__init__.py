"""What crosses Forge's boundaries, as frozen structures without I/O.

`msgspec.Struct` rather than `dataclasses`: the same shape, with strict decoding from JSON and a schema for free.
"""
