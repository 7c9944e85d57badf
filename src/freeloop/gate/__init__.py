"""What every request passes on its way in and out: the scope, the access record, errors as problem documents.

May be imported by ``service`` and everything above; imports ``scope``, ``records`` and ``errors``.
"""
