"""The customer's sign-off: the page that asks for it.

Looking to change the words? ``templates/words/<language>.yaml``. The look? ``templates/sign-off.css``. What stands where?
``templates/sign-off.html.j2``, whose named blocks a served page can fill otherwise (a form in place of ``answer``, a linked
stylesheet in place of ``style``). What the page may say? :class:`pipeline.sign_off.page.SignOffPage`.
"""
