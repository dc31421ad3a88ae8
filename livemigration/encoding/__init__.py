"""How pages travel: raw, compressed by zstd or LZ4, or as what changed since they were sent last.

* `codecs` - zstd and LZ4 over blocks of pages, with strict limits when they are decoded
* `delta` - XOR with an earlier version of a page, as runs of changed words
* `remembered` - the bounded memory of versions sent, kept alike at both ends
* `compressibility` - what a page would shrink to, measured on pages like it
* `choice` - the mix of encodings by which a frame is through in the least time
* `encoder`, `decoder` - frames at the source and at the destination
* `tally` - how many pages went in which encoding

docs/encodings.md explains what each is good for and what it costs.
"""
