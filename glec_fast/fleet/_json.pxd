cdef int refuse(str field, object value, str advice) except -1
cdef int refuse_type(str field, object value, str advice) except -1
cdef int refuse_text(str field, object text) except -1
cdef object plain_name(object value)
cdef bytes encoded_data(object value, str name)
