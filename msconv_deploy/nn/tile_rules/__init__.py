"""What PyTorch operations do to uniform tensors: one class for each kind of operation.

A rule answers three questions:

* ``fact``: along which dimensions is the result uniform, given the operands?
* ``core``: how is the result computed with some uniform dimensions kept at extent 1?
* ``split``: does the operation treat every channel alone, so that it may be applied to the operands of a concatenation
  one by one?

An operation without a rule is opaque: nothing is known of its result. The rules prove uniformity from the structure
of the network (what was expanded, pooled to 1, viewed with a literal 1), never from extents at example inputs.
"""
